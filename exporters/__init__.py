"""Carries a snapshot or a finished run to one place in one format."""
