"""A run from outside its workers: the supervisor, the run directory and its manifest, the run log."""
