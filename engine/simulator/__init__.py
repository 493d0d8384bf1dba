"""The built-in provider with a known truth: it speaks every API the lens measures and logs when it sent every token.

Run it as `python -m llm_latency_lens.engine.simulator --port 0`; it prints one JSON line when it listens. It shares
only errors, clock and process set-up with the rest of the engine: code shared with the client would share its errors.

    script.py    what a simulated model does: distributions, limits, faults, all drawn by seed
    faults.py    the ways a reply can go wrong
    framing.py   events and heads -> bytes; in an event only the send time is left to fill in (sans-IO)
    providers/   one file per API: reading a request, rendering the events of its reply (sans-IO)
    reply/       what a request gets: admission, rate limits and queue, the reply step by step, its timer
    server/      processes, sockets, TLS, one connection after another
    pages.py     /stats, /metrics, /v1/models, /healthz
    stats.py     counters shared by all processes; log.py: one JSON line per request
"""
