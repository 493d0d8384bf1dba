"""The health of the measuring side, from the rings' counters and the host: `Client` of a tick and of the complete run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..engine.records.lag import lag_value
from ..engine.records.layout import Counter
from ..engine.records.tap_status import TapStatus
from . import host
from .checkpoint import Health
from .series import Series, Tally
from .snapshot import Client, Lag
from .statistics import share
from .tick_health import Grown, LimitedTicks, harmful, limits_of

Counts = Sequence[int]
NS_PER_US: Final = 1_000
SPANS_KEPT: Final = 64


class Moment:
    """All cumulated readings at one time; the difference of two is a tick."""

    def __init__(
        self,
        *,
        now_ns: int,
        counters: Mapping[int, Counts],
        lag: npt.NDArray[np.int64],
        sample: host.Sample,
        tap: TapStatus | None = None,
        write_wait_ns: int = 0,
        restarts: int = 0,
    ) -> None:
        self.write_wait_ns = write_wait_ns
        self.restarts = restarts
        self.now_ns = now_ns
        self.counters = counters
        self.lag = lag
        self.sample = sample
        self.tap = tap

    def sum(self, counter: Counter) -> int:
        return sum(counts[counter] for counts in self.counters.values())


# What adds up over ticks, of the machine and of the collector: cumulated readings of a Moment.
HOST_SUMS: Final = (
    "throttled_ns",
    "cpu_pressure_ns",
    "memory_pressure_ns",
    "io_pressure_ns",
    "write_wait_ns",
    "segments_sent",
    "retransmits",
)


def host_growth(before: Moment, now: Moment) -> dict[str, int]:
    """How much each of HOST_SUMS grew, of those that are known; of throttling, that of the worst control group."""
    pairs: dict[str, tuple[int | None, int | None]] = {
        name: (getattr(before.sample, name), getattr(now.sample, name)) for name in HOST_SUMS if name not in _OWN
    }
    pairs["write_wait_ns"] = before.write_wait_ns, now.write_wait_ns
    known = before.sample.throttled_ns
    throttled = [total - known[group] for group, total in now.sample.throttled_ns.items() if group in known]
    growth = {name: max(0, b - a) for name, (a, b) in pairs.items() if a is not None and b is not None}
    return growth | ({"throttled_ns": max(0, *throttled)} if throttled else {})


_OWN: Final = ("throttled_ns", "write_wait_ns")


def host_shares(growth: Mapping[str, int], span_ns: int) -> dict[str, float]:
    """The fields of Client that follow from what grew in `span_ns`."""
    shares = {
        f"{name.removesuffix('_ns')}_share": grown / span_ns
        for name, grown in growth.items()
        if name.endswith("_ns") and span_ns
    }
    if growth.get("segments_sent"):
        shares["retransmit_share"] = growth.get("retransmits", 0) / growth["segments_sent"]
    return shares


def judge_tick(client: Client, before: Moment, now: Moment) -> None:
    """Notes in `client` why it was limited between two moments."""
    found = limits_of(
        client,
        Grown(
            drops=sum(now.sum(each) - before.sum(each) for each in (Counter.REQUEST_DROPS, Counter.GAP_DROPS)),
            clock_steps=now.sum(Counter.CLOCK_STEPS) - before.sum(Counter.CLOCK_STEPS),
            restarts=now.restarts - before.restarts,
            retransmits=host_growth(before, now).get("retransmits", 0),
        ),
    )
    client.limited_by = dict.fromkeys(found, 1)
    client.limited_share = float(bool(found))


def count_ticks(health: Health, client: Client, start_ns: int, end_ns: int, ticks: int) -> None:
    """Adds so many measured ticks, which share one `client`, to the run's."""
    health.ticks += ticks
    if client.limited_by:
        health.limited_ticks += ticks
        health.harmed_ticks += ticks * harmful([*client.limited_by], client.stamps)
        _note_span(health.limited_spans, start_ns, end_ns)
        for code in client.limited_by:
            health.limited_by[code] = health.limited_by.get(code, 0) + ticks


def limited_ticks(health: Health) -> LimitedTicks:
    """The run's measured ticks for the verdict, the most frequent reason first."""
    ordered = sorted(health.limited_by.items(), key=lambda each: -each[1])
    return LimitedTicks(health.ticks, health.limited_ticks, health.harmed_ticks, tuple(ordered))


def observe(health: Health, before: Moment | None, now: Moment) -> None:
    """Adds what the host went through since the last moment to the run's sums."""
    health.rss_mb_max = max(health.rss_mb_max, now.sample.rss_mb_max or 0.0)
    if segment_stamps(before, now):
        health.segment_ticks += 1
    else:
        health.read_ticks += 1
        _note_span(health.read_spans, before.now_ns if before else now.now_ns, now.now_ns)
    if before is None:
        return
    health.watched_ns += now.now_ns - before.now_ns
    for name, grown in host_growth(before, now).items():
        health.host[name] = health.host.get(name, 0) + grown
    if None not in (before.sample.steal, before.sample.total, now.sample.steal, now.sample.total):
        health.steal += max(0, (now.sample.steal or 0) - (before.sample.steal or 0))
        health.total += max(0, (now.sample.total or 0) - (before.sample.total or 0))
    if before.sample.retransmits is not None and now.sample.retransmits is not None:
        health.retransmits += max(0, now.sample.retransmits - before.sample.retransmits)
        health.retransmits_known = True


def _note_span(spans: list[tuple[int, int]], start_ns: int, end_ns: int) -> None:
    """Adds a span, or lengthens the last one that it adjoins. Beyond SPANS_KEPT the last one grows."""
    if spans and (start_ns <= spans[-1][1] or len(spans) >= SPANS_KEPT):
        spans[-1] = spans[-1][0], end_ns
    else:
        spans.append((start_ns, end_ns))


def segment_stamps(before: Moment | None, now: Moment) -> bool:
    """Whether every segment kept its own stamp between two moments: the tap was at work and dropped no clone."""
    if now.tap is None or not now.tap.protects(now.now_ns):
        return False
    return before is None or before.tap is None or now.tap.dropped == before.tap.dropped


def clock_of(series: Series) -> str:
    """Whose clock stamped the arrivals: kernel, user or mixed. Kernel where nothing has arrived yet."""
    user = series.tally[Tally.USER_STAMPED]
    if not user:
        return "kernel"
    return "mixed" if series.tally[Tally.KERNEL_STAMPED] else "user"


def lag_of(counts: npt.NDArray[np.int64]) -> Lag:
    """Percentiles of a loop lag histogram, us; upper bounds of its buckets."""
    total = int(counts.sum())
    if not total:
        return Lag()
    reached = np.cumsum(counts)
    p50, p99 = (int(np.searchsorted(reached, max(1, round(total * q)))) for q in (0.5, 0.99))
    last = int(np.flatnonzero(counts)[-1])
    return Lag(p50=lag_value(p50) / NS_PER_US, p99=lag_value(p99) / NS_PER_US, max=lag_value(last) / NS_PER_US)


def client_of_run(
    now: Moment, series: Series, health: Health, *, workers: int, restarts: tuple[int, int, int]
) -> Client:
    """Over the complete run. CPU is that of the measured phases, drain included; utilisation the busiest worker's mean."""
    spans = [(counts[Counter.CPU_MEASURED_NS], counts[Counter.MEASURED_NS]) for counts in now.counters.values()]
    events, cpu_ns = now.sum(Counter.EVENTS_MEASURED), now.sum(Counter.CPU_MEASURED_NS)
    client = _common(now, series, health, workers=workers, restarts=restarts)
    client.cpu_us_per_event = cpu_ns / NS_PER_US / events if events else None
    client.cpu_utilisation = max((cpu / span for cpu, span in spans if span), default=None)
    client.loop_lag_us = lag_of(now.lag)
    if health.segment_ticks:
        client.stamps = "mixed" if health.read_ticks else "segment"
    waits = [(counts[Counter.QUEUE_WAIT_MEASURED_NS], counts[Counter.MEASURED_NS]) for counts in now.counters.values()]
    client.run_queue_wait_share = max((wait / span for wait, span in waits if span), default=None)
    stops = [(counts[Counter.STOPPED_MEASURED_NS], counts[Counter.MEASURED_NS]) for counts in now.counters.values()]
    client.stopped_share = max((stop / span for stop, span in stops if span), default=None)
    client.gc_pause_share = max((c[Counter.GC_NS] for c in now.counters.values()), default=0) / (health.watched_ns or 1)
    stalls = max((c[Counter.STALLED_NS] for c in now.counters.values()), default=0)
    client.stalled_share = stalls / (health.watched_ns or 1)
    for name, value in host_shares(health.host, health.watched_ns).items():
        setattr(client, name, value)
    client.limited_by = dict(sorted(health.limited_by.items(), key=lambda each: -each[1]))
    client.limited_share = share(health.limited_ticks, health.ticks)
    client.steal_share = share(health.steal, health.total)
    client.rss_mb_max = health.rss_mb_max or None
    client.tcp_retransmits = health.retransmits if health.retransmits_known else None
    return client


def client_of_tick(
    before: Moment | None, now: Moment, series: Series, health: Health, *, workers: int, restarts: tuple[int, int, int]
) -> Client:
    """CPU, lag, steal and memory of this tick (None in the collector's first); counts are the run's so far."""
    client = _common(now, series, health, workers=workers, restarts=restarts)
    client.rss_mb_max = now.sample.rss_mb_max
    client.tcp_retransmits = health.retransmits if health.retransmits_known else None
    if before is None or now.now_ns <= before.now_ns:
        return client
    span = now.now_ns - before.now_ns
    client.stamps = "segment" if segment_stamps(before, now) else "read"
    used = _growth(before, now, Counter.CPU_NS)
    client.run_queue_wait_share = max(_growth(before, now, Counter.QUEUE_WAIT_NS).values(), default=0) / span
    client.gc_pause_share = max(_growth(before, now, Counter.GC_NS).values(), default=0) / span
    client.stalled_share = max(_growth(before, now, Counter.STALLED_NS).values(), default=0) / span
    for name, value in host_shares(host_growth(before, now), span).items():
        setattr(client, name, value)
    client.stopped_share = max(_growth(before, now, Counter.STOPPED_MEASURED_NS).values(), default=0) / span
    events = now.sum(Counter.EVENTS) - before.sum(Counter.EVENTS)
    client.cpu_utilisation = max(used.values(), default=0) / span if used else None
    client.cpu_us_per_event = sum(used.values()) / NS_PER_US / events if events > 0 else None
    client.loop_lag_us = lag_of(np.maximum(now.lag - before.lag, 0))
    if None not in (before.sample.steal, before.sample.total, now.sample.steal, now.sample.total):
        stolen = (now.sample.steal or 0) - (before.sample.steal or 0)
        client.steal_share = share(stolen, (now.sample.total or 0) - (before.sample.total or 0))
    judge_tick(client, before, now)
    return client


def _growth(before: Moment, now: Moment, counter: Counter) -> dict[int, int]:
    """By worker, how much a counter has grown since `before`."""
    earlier = {worker: counts[counter] for worker, counts in before.counters.items()}
    return {worker: counts[counter] - earlier.get(worker, 0) for worker, counts in now.counters.items()}


def _common(now: Moment, series: Series, health: Health, *, workers: int, restarts: tuple[int, int, int]) -> Client:
    tally = series.tally
    return Client(
        workers=workers,
        clock=clock_of(series),
        ring_drops=now.sum(Counter.REQUEST_DROPS),
        itl_coalesced_share=share(tally[Tally.GAPS_COALESCED], tally[Tally.GAPS]),
        ttft_coalesced_share=share(tally[Tally.STREAMS_COALESCED], tally[Tally.STREAMS]),
        clock_steps=now.sum(Counter.CLOCK_STEPS),
        gc_pauses=now.sum(Counter.GC_PAUSES),
        restarts=restarts[0],
        collector_restarts=restarts[1],
        exporter_restarts=restarts[2],
        stale_resends=now.sum(Counter.STALE_RESENDS),
        clamped=int(tally[Tally.CLAMPED]),
        gaps_saturated=now.sum(Counter.GAPS_SATURATED),
        burst_replies=int(tally[Tally.BURSTS]),
        empty_events=int(tally[Tally.EMPTY_EVENTS]),
        late_renders=now.sum(Counter.LATE_RENDERS),
        export_failures=health.export_failures,
        records_dropped=health.records_dropped,
    )
