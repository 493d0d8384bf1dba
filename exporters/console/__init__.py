"""The live view and the final table on a terminal."""
