"""Plan files and flags in, a `Plan` out: reading, checking and the errors that name the location."""
