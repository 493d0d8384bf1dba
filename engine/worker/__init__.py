"""The worker process: one core, one event loop, its share of the schedule in, records out."""
