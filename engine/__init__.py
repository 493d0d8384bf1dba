"""Makes the load and the records. Imports nothing of the rooms above it."""

__version__ = "0.1.0"
