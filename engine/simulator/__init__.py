"""The built-in provider with a known truth: it speaks every API the lens measures and logs when it sent every token.

Run it as `python -m llm_latency_lens.engine.simulator --port 0`; it prints one JSON line when it listens.

    script.py      what a simulated model does: distributions, limits, faults, all drawn by seed
    faults.py      the ways a reply can go wrong
    providers/     one file per API: reading a request, rendering the events of its reply (sans-IO)
    framing.py     events -> pre-rendered bytes in which only the send time is patched (sans-IO)
    template.py    the rendering of replies, cached
    pacer.py       does things at their time: one timerfd and a heap
    connection.py  one client: requests in, bytes out, reset and close
    transports.py  its bytes over a plain socket or TLS
    admission.py   what a request gets: a page, a refusal, a place in the queue, a reply
    heads.py       heads of HTTP replies
    reply.py       one reply being sent, step by step; strikes.py: what breaks it half way
    limits.py      service slots with a queue, RPM and TPM buckets
    log.py         what was received and sent, one JSON line per request
    stats.py       counters shared by all processes
    pages.py       /stats, /metrics, /v1/models, /healthz
    server.py      the sockets of one process; process.py starts one or several
"""
