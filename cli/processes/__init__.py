"""Entry points of the processes that a run starts beside its workers."""
