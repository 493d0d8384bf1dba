"""A run's ticks in at most POINTS spans: neither memory nor the page grows with the run.

Ticks are added to the last span. When there are too many spans, neighbours are merged two by two and from then on a span
takes twice as many ticks. A merged span keeps what people look for, as `collectors.rollup` says: rates are means, p50
is the count-weighted mean of the ticks' p50, p99 the highest p99 of its ticks; in-flight, the client's health and the
servers' load are the highest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ...collectors.rollup import Slice
from ...collectors.snapshot import SNAPSHOT_DECODER, Snapshot
from ...engine.files import UNDECODABLE
from ..spool.parts import lines_of
from .marks import Incidents

HEAT_COLUMNS: Final = 240
POINTS: Final = 1200  # a point per pixel of the widest chart
LATENCIES: Final = ("ttft_ms", "ttft_scheduled_ms", "itl_ms", "e2e_ms")  # the metrics shown over time
HEATED: Final = ("ttft_ms", "itl_ms")  # those of them shown as heat maps: their bucket counts are kept
SERVER_LOAD: Final = ("requests_running", "requests_waiting", "kv_cache_usage", "gpu_utilisation")


class Span:
    """Some neighbouring ticks: their time, the sums of each target, the client's health, the servers' load."""

    __slots__ = ("cpu", "end_s", "lag_us", "limited", "seconds", "servers", "start_s", "steal", "targets")

    def __init__(self, start_s: float) -> None:
        self.start_s = self.end_s = start_s
        self.seconds = 0.0
        self.lag_us: float | None = None
        self.cpu: float | None = None
        self.steal: float | None = None
        self.limited: set[str] = set()  # why this client was limited in one of the ticks
        self.targets: dict[str, Slice] = {}
        self.servers: dict[tuple[str, str], float] = {}  # (target, one of SERVER_LOAD): the highest

    def add(self, tick: Snapshot, heated: Sequence[str]) -> None:
        client = tick.client
        self.end_s = tick.elapsed_s
        self.seconds += tick.seconds
        self._add_health(client.loop_lag_us.p99, client.cpu_utilisation, client.steal_share)
        self.limited |= client.limited_by.keys()
        for interval in tick.intervals:
            buckets = {metric: interval.buckets[metric] for metric in heated if metric in interval.buckets}
            # No chart shows moments: adding them up would take most of the time.
            shown = msgspec.structs.replace(interval, buckets=buckets, moments={})
            if interval.target not in self.targets:
                self.targets[interval.target] = Slice(LATENCIES)
            self.targets[interval.target].add(shown)
        for name, server in tick.servers.items():
            for field in SERVER_LOAD:
                self._add_load((name, field), getattr(server, field))

    def merge(self, other: Span) -> None:
        self.end_s = other.end_s
        self.seconds += other.seconds
        self._add_health(other.lag_us, other.cpu, other.steal)
        self.limited |= other.limited
        for name, total in other.targets.items():
            if name in self.targets:
                self.targets[name].merge(total)
            else:
                self.targets[name] = total
        for key, value in other.servers.items():
            self._add_load(key, value)

    def _add_health(self, lag_us: float | None, cpu: float | None, steal: float | None) -> None:
        self.lag_us = larger(self.lag_us, lag_us)
        self.cpu = larger(self.cpu, cpu)
        self.steal = larger(self.steal, steal)

    def _add_load(self, key: tuple[str, str], value: float | None) -> None:
        if value is not None:
            self.servers[key] = max(value, self.servers.get(key, value))


class Timeline:
    """A run's ticks in at most `points` spans. Of the metrics in `heated` it keeps the bucket counts."""

    def __init__(self, heated: Sequence[str] = HEATED, *, points: int = POINTS) -> None:
        self._heated = heated
        self._points = points
        self.spans: list[Span] = []
        self.ticks = 0
        self.ticks_per_span = 1
        self.start_wall_ns: int | None = None  # of the run, Unix epoch
        self.incidents = Incidents()

    def add(self, tick: Snapshot) -> None:
        if self.ticks % self.ticks_per_span == 0:
            self.spans.append(Span(tick.elapsed_s - tick.seconds))
        span = self.spans[-1]
        span.add(tick, self._heated)
        self.incidents.add(tick.client, tick.elapsed_s)
        if self.start_wall_ns is None:
            self.start_wall_ns = tick.wall_time_ns - round(tick.elapsed_s * 1e9)
        self.ticks += 1
        if len(self.spans) > self._points:
            self._halve()

    def columns(self) -> list[list[Span]]:
        """The spans in at most HEAT_COLUMNS groups of equal size, the last one perhaps smaller: those of heat maps."""
        size = max(1, math.ceil(len(self.spans) / HEAT_COLUMNS))
        return [self.spans[start : start + size] for start in range(0, len(self.spans), size)]

    def edges(self) -> list[float]:
        """The edges of the columns, in seconds since the start of the run; empty without a span."""
        columns = self.columns()
        return [*(group[0].start_s for group in columns), columns[-1][-1].end_s] if columns else []

    def _halve(self) -> None:
        for first, second in zip(self.spans[::2], self.spans[1::2], strict=False):
            first.merge(second)
        self.spans = self.spans[::2]
        self.ticks_per_span *= 2


def read_timeline(path: Path, timeline: Timeline) -> Timeline:
    """`timeline` with the ticks of an intervals.jsonl; damaged lines are left out, and so is a file that is missing."""
    try:
        for line in lines_of(path):
            try:
                timeline.add(SNAPSHOT_DECODER.decode(line))
            except UNDECODABLE:
                continue
    except FileNotFoundError:
        pass
    return timeline


def larger(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
