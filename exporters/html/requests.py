"""What the report shows of single requests, from one pass over requests.msgpack in bounded memory.

Densities of TTFT over input tokens and of E2E over output tokens; a few requests of each cell of the TTFT heat map, for
its timeline; the token times of the slowest requests and of one of median duration.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from ...engine.metrics import BUCKETS
from .. import request_rows
from .density import Density, DensityChart

TARGETS_DRAWN: Final = 8  # that have densities of their own
PER_CELL: Final = 4  # requests kept of a cell of the heat map
KEPT_MAX: Final = 12_000
SLOWEST: Final = 3
MEDIANS: Final = 64  # requests that the one of median duration is chosen from
TOKENS_MAX: Final = 2_000  # of a timeline
STALL_OF_MEDIAN: Final = 4.0  # a gap that is this many times the request's median gap, and
STALL_MS: Final = 20.0  # at least this long, is a stall


class RequestRow(msgspec.Struct, gc=False):
    """The fields of a row that are read here."""

    request: int | None = None
    phase: str | None = None
    target: str | None = None
    wall_time_ns: int | None = None
    outcome: str | None = None
    unsent: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    connect_start_ms: float | None = None
    tcp_done_ms: float | None = None
    tls_done_ms: float | None = None
    send_ms: float | None = None
    first_token_ms: float | None = None
    end_ms: float | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    token_ns: list[int] | None = None
    token_coalesced: list[bool] | None = None


class Shown(msgspec.Struct, array_like=True):
    """A request of the timeline: times in ms after its slot, which is at `start_s`; None where there was no such moment."""

    column: int
    bucket: int  # of BUCKETS["ttft_ms"]; -1 without a first token
    start_s: float
    target: str
    outcome: str
    connect: float | None
    connected: float | None
    send: float | None
    first_token: float | None
    end: float | None
    input_tokens: int | None
    output_tokens: int | None


class TokenTimeline(msgspec.Struct):
    """Arrivals in ms after sending; `coalesced` and `stalls` are positions in it."""

    title: str
    target: str
    request: int | None
    start_s: float | None
    times: list[float]
    coalesced: list[int]
    stalls: list[int]
    tokens: int  # of all, of which `times` has the first


class Pictures(msgspec.Struct):
    densities: list[DensityChart]
    requests: list[Shown]
    tokens: list[TokenTimeline]
    rows: int
    timed: bool  # does any row have token times?


def pictures_of(
    run_dir: Path, *, targets: Sequence[str], measured: Sequence[str], edges: Sequence[float], start_wall_ns: int | None
) -> Pictures:
    """From the rows of the `measured` phases. `edges` are the columns of the heat map, in s after `start_wall_ns`."""
    reader = _Reader(targets, frozenset(measured), edges, start_wall_ns)
    for row in request_rows.rows(run_dir, RequestRow):
        reader.add(row)
    return reader.result()


class _Reader:
    def __init__(
        self, targets: Sequence[str], measured: frozenset[str], edges: Sequence[float], start_wall_ns: int | None
    ) -> None:
        self._measured = measured
        self._edges = edges
        self._start_ns = start_wall_ns
        self._ttft = {target: Density() for target in targets[:TARGETS_DRAWN]}
        self._e2e = {target: Density() for target in targets[:TARGETS_DRAWN]}
        self._cells: dict[tuple[int, int], int] = {}
        self._shown: list[Shown] = []
        self._slowest: list[tuple[float, int, RequestRow]] = []  # a heap
        self._medians: list[RequestRow] = []
        self._rng = np.random.default_rng(0)
        self._order = count()
        self._timed = self._rows = 0

    def add(self, row: RequestRow) -> None:
        self._rows += 1
        if row.phase not in self._measured:
            return
        if row.outcome == "ok" and row.target in self._ttft:
            if row.input_tokens and row.ttft_ms is not None:
                self._ttft[row.target].add(row.input_tokens, row.ttft_ms)
            if row.output_tokens and row.e2e_ms is not None:
                self._e2e[row.target].add(row.output_tokens, row.e2e_ms)
        if not row.unsent and row.send_ms is not None:
            self._show(row)
        if row.token_ns and row.e2e_ms is not None:
            self._time(row, row.e2e_ms)

    def _show(self, row: RequestRow) -> None:
        """Keeps the first few of each cell."""
        if self._start_ns is None or row.wall_time_ns is None or len(self._edges) < 2 or len(self._shown) >= KEPT_MAX:
            return
        start_s = (row.wall_time_ns - self._start_ns) / 1e9
        moment_ms = row.first_token_ms if row.first_token_ms is not None else row.end_ms
        column = bisect_right(self._edges, start_s + (moment_ms or 0.0) / 1e3) - 1
        column = min(max(column, 0), len(self._edges) - 2)
        bucket = -1 if row.ttft_ms is None else bisect_left(BUCKETS["ttft_ms"], row.ttft_ms)
        key = (column, bucket if row.outcome == "ok" else -1)
        if self._cells.get(key, 0) >= PER_CELL:
            return
        self._cells[key] = self._cells.get(key, 0) + 1
        connected = row.tls_done_ms if row.tls_done_ms is not None else row.tcp_done_ms
        self._shown.append(
            Shown(
                column=key[0],
                bucket=key[1],
                start_s=round(start_s, 3),
                target=row.target or "",
                outcome=row.outcome or "",
                connect=_short(row.connect_start_ms),
                connected=_short(connected),
                send=_short(row.send_ms),
                first_token=_short(row.first_token_ms),
                end=_short(row.end_ms),
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
            )
        )

    def _time(self, row: RequestRow, e2e_ms: float) -> None:
        """The slowest so far, and a random choice of all: the one of median duration is among its nearest."""
        entry = (e2e_ms, next(self._order), row)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif e2e_ms > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, entry)
        self._timed += 1
        if len(self._medians) < MEDIANS:
            self._medians.append(row)
        elif (k := int(self._rng.integers(self._timed))) < MEDIANS:
            self._medians[k] = row

    def result(self) -> Pictures:
        return Pictures(
            densities=list(self._charts()),
            requests=self._shown,
            tokens=list(self._timelines()),
            rows=self._rows,
            timed=self._timed > 0,
        )

    def _charts(self) -> Iterator[DensityChart]:
        for densities, title, x_label, y_label in (
            (self._ttft, "TTFT by input tokens", "input tokens", "TTFT"),
            (self._e2e, "E2E by output tokens", "output tokens", "E2E"),
        ):
            for target, density in densities.items():
                chart = density.chart(target=target, title=title, x_label=x_label, y_label=y_label)
                if chart:
                    yield chart

    def _timelines(self) -> Iterator[TokenTimeline]:
        slowest = [row for _, _, row in sorted(self._slowest, reverse=True)]
        for number, row in enumerate(slowest):
            yield self._timeline("slowest" if number == 0 else f"slowest but {number}", row)
        others = sorted((row for row in self._medians if row not in slowest), key=lambda row: row.e2e_ms or 0.0)
        if others:
            yield self._timeline("of median duration", others[len(others) // 2])

    def _timeline(self, title: str, row: RequestRow) -> TokenTimeline:
        all_ms = np.array(row.token_ns, float) / 1e6
        times = all_ms[:TOKENS_MAX]
        gaps = np.diff(times)
        apart = gaps[gaps > 0]
        bound = max(STALL_MS, STALL_OF_MEDIAN * float(np.median(apart))) if len(apart) else np.inf
        start = None
        if self._start_ns is not None and row.wall_time_ns is not None:
            start = round((row.wall_time_ns - self._start_ns) / 1e9, 2)
        return TokenTimeline(
            title=title,
            target=row.target or "",
            request=row.request,
            start_s=start,
            times=[round(float(ms), 2) for ms in times],
            coalesced=[i for i, mark in enumerate((row.token_coalesced or [])[:TOKENS_MAX]) if mark],
            stalls=[int(i) + 1 for i in np.flatnonzero(gaps > bound)],
            tokens=len(all_ms),
        )


def _short(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)
