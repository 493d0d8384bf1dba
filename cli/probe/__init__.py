"""`lens probe`: continuous measurement as a service."""
