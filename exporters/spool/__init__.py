"""Ticks on their way to a database: files that are appended to, rotated and followed."""
