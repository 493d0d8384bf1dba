"""HdrHistogram logs, written and read."""
