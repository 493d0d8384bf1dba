"""Reads rings, host and server metrics; turns records into histograms, snapshots and a verdict."""
