"""What people see in a terminal: the live view on stderr while a run goes on, the final table on stdout.

`terminal` is light. `live` and `final` import rich: import them only where something is drawn.
"""
