"""`lens quick`: find a server on this machine, measure it for a moment, answer in three sentences."""
