"""A worker process: one core, one event loop; its share of the schedule in, records into its own ring out.

`process` has limits, signals and orders, `worker` the loop and the way of a request, `ledger` what is written of it,
`deadlines` when it is too late, `allowance` what may be sent, `health` what the worker measures of itself, `timers`
what is due when.
Imports neither numpy nor aiohttp nor rich, and shares nothing with other workers.
"""
