"""`lens calibrate`: measures how accurate this host measures. What is compared and kept is collectors.calibration.

command.py     the command line, and who sees what
conditions.py  what a run of the calibration is like: load, replies, transport, stalls; the grids
measure.py     one such run: a simulator, a real run against it, stalls of its worker, the comparison
session.py     all of them, within the time there is
"""
