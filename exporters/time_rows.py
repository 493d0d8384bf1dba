"""Where the time of a mean request went, as the rows of a waterfall: for the console and the HTML report. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..collectors.snapshot import TargetReport
from . import figures

UNKNOWN: Final = "unknown"
OTHERS_SHARE: Final = 0.1  # by so much the server's count may differ from ours without a word


class TimeRow(NamedTuple):
    """One part. `start_ms` is where it begins, after the known parts before it; `ms` is None where it is unknown."""

    name: str
    start_ms: float
    ms: float | None
    note: str

    @property
    def value(self) -> str:
        return UNKNOWN if self.ms is None else figures.value(self.ms)


def time_rows(target: TargetReport) -> list[TimeRow]:
    """The parts in their order; none for a target without a first token, which has no parts."""
    ttft = target.metrics.get("ttft_ms")
    if ttft is None or ttft.mean is None:
        return []
    t = target.time
    parts = [("client", t.client_ms), ("network", t.network_ms), ("queue", t.queue_ms), ("prefill", t.prefill_ms)]
    sources = dict(t.sources)
    if t.other_ms is not None:
        parts.append(("other", t.other_ms))
    elif t.server_ms is not None:
        parts.append(("server", t.server_ms - (t.queue_ms or 0.0)))
        sources["server_ms"] = "queue, prefill and the rest"
    else:
        parts.append(("until first token", ttft.mean - (t.queue_ms or 0.0) - (t.prefill_ms or 0.0)))
    parts.append(("decode", t.decode_ms))
    rows, cursor = [], 0.0
    for name, ms in parts:
        rows.append(TimeRow(name, cursor, ms, sources.get(f"{name}_ms", "")))
        cursor += max(0.0, ms or 0.0)
    return rows


def server_line(target: TargetReport) -> str:
    """What the server's own pages counted in the measured part, in words; empty for a target without any."""
    server = target.server
    if server is None:
        return ""
    if server.reason:
        return f"unknown: {server.reason}"
    words = [
        f"{name} {figures.value(each.mean_ms)} ms ({figures.count(each.count)})"
        for name, each in (
            ("TTFT", server.ttft),
            ("queue", server.queue),
            ("prefill", server.prefill),
            ("decode", server.decode),
        )
        if each.mean_ms is not None
    ]
    counted = server.queue.count or server.ttft.count
    if counted is not None and abs(counted - target.requests.ok) > OTHERS_SHARE * target.requests.ok:
        words.append(f"of {counted:,} requests, where this run had {target.requests.ok:,} ok")
    if server.prefix_cache_hit_share is not None:
        words.append(f"prefix cache hit {figures.share(server.prefix_cache_hit_share)} of the prompt tokens")
    if server.preemptions is not None:
        words.append(f"{server.preemptions:,} preemptions")
    return ", ".join(words)
