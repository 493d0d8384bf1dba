"""One run from many load hosts: a driver, and on each host an agent around the ordinary supervisor.

    driver                                     host (one each)
    cli run  --> Driver --launcher--> stdin -> agent: Supervisor with its workers and its collector
                   |  <------- TCP ----------> |
                   |   joins, clock, starts, orders, ticks, files
             collector: merges the hosts' ticks into the ordinary files

The agent gets its share, the plan with its secrets included, through the launcher (a pipe, or Ray's own channel); over
the TCP connection, which the agent opens, go no secrets but the token that admits it. Every host computes the slots of
its own workers from (seed, worker, workers over all hosts), so no message is sent for a request.

Nothing here merges numbers: the content of a tick is the collectors' business. `ray` is imported in launch.py only.
"""
