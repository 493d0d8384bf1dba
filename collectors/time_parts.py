"""Where the time of a mean request went: client, network, queue, prefill, decode. Pure.

Means, because they add up and percentiles do not. What nobody measured stays None: a part is never the remainder of the
others but `other_ms`, which is named so.
"""

from __future__ import annotations

from typing import Final

from .snapshot import ServerWindow, TargetReport, TimeParts

KERNEL: Final = "this host's kernel (TCP_INFO)"
TO_PROXY: Final = ", to the proxy only"
HERE: Final = "measured here"
PAGE: Final = "the server's page"
PROVIDER: Final = "the server's timings in each reply"


def time_parts(target: TargetReport, *, proxied: bool) -> TimeParts:
    """The parts of one target's requests, from its distributions and its server's own counters."""
    means = {name: each.mean for name, each in target.metrics.items()}
    ttft, e2e = means.get("ttft_ms"), means.get("e2e_ms")
    parts = TimeParts(
        client_ms=means.get("client_lateness_ms"),
        network_ms=means.get("rtt_ms"),
        server_ms=means.get("server_ttft_ms"),
        decode_ms=None if ttft is None or e2e is None else round(e2e - ttft, 6),
    )
    server = target.server or ServerWindow()
    parts.queue_ms, parts.prefill_ms = server.queue.mean_ms, server.prefill.mean_ms
    network = f"{KERNEL}{TO_PROXY if proxied else ''}"
    sources = {"client_ms": HERE, "network_ms": network, "server_ms": HERE, "queue_ms": PAGE, "prefill_ms": PAGE}
    # llama.cpp counts no requests on its page, but says in each reply how long its prompt took.
    if parts.prefill_ms is None and server.prefill.sum_s is not None:
        parts.prefill_ms = means.get("provider_ms")
        sources["prefill_ms"] = PROVIDER
    if parts.server_ms is not None and parts.prefill_ms is not None:
        parts.other_ms = round(parts.server_ms - parts.prefill_ms - (parts.queue_ms or 0.0), 6)
        sources["other_ms"] = (
            "the rest of the server's time" if parts.queue_ms is not None else "the rest, queue included"
        )
    sources["decode_ms"] = HERE
    parts.sources = {name: source for name, source in sources.items() if getattr(parts, name) is not None}
    return parts
