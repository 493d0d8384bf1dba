"""`lens doctor`: whether this machine can measure, before it does. Read-only.

`needs` is what a plan asks of the machine, `facts` what was found, `reading`, `network`, `window` and `timing` find it, the
`*_checks` are pure functions of the facts, and `table` lists them all. Nothing here connects to a target: engine.runs.reach
does, and passes on what it found.
"""
