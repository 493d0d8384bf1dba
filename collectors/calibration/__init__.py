"""How accurate this host measures: a run against the simulator's own log, and the result that later runs quote. No I/O
but of the result's file; what makes the runs is cli.calibrate.

    result.py    the result: its points, its ceiling, the JSON that is printed and kept; no numpy, as a run reads it
    truth.py     one run compared with the server's log, event by event
    ceiling.py   which rate to try next, and the ceiling so far
    stored.py    the file of this host: written, read, quoted by a run, held against a plan
"""
