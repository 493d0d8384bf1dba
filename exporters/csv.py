"""A run as CSV (RFC 4180, UTF-8): requests.csv has a row per request, intervals.csv one per tick, phase and target, and
metrics.csv one per metric of the run, of its stationary part, and of each phase and target, with 95 % intervals.

All are written row by row in constant memory. Absent values are empty fields. Columns of requests.csv are the keys of
requests.msgpack; those of intervals.csv are `COLUMNS`, then `<metric>_<level>` for each metric.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import astuple

from ..collectors.snapshot import Ci95, Distribution, Interval, Report, Snapshot
from ..engine.errors import OutputError
from ..engine.metrics import METRICS, STATISTICS
from . import rundir
from .estimates import parts

LEVELS: Final = ("count", *STATISTICS)
COLUMNS: Final = (
    "tick",
    "wall_time_ns",
    "elapsed_s",
    "seconds",
    "phase",
    "target",
    "measured",
    "in_flight",
    "planned",
    "sent",
    "ok",
    "failed",
    "cancelled",
    "unsent",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_usd",
    "requests_per_s",
    "output_tokens_per_s",
    "itl_coalesced_share",
    "connection_reused_share",
)
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet take a cell's text for a formula
METRICS_HEADER: Final = (
    *("part", "name", "metric", "count", *STATISTICS, "n_eff"),
    *(f"{statistic}_{end}" for statistic in Ci95.__struct_fields__ for end in ("low", "high")),
)
HEADER: Final = (*COLUMNS, *(f"{metric}_{level}" for metric in METRICS for level in LEVELS))


def write_requests(run_dir: Path, path: Path) -> int:
    """Writes requests.csv and returns the number of requests."""
    rows = rundir.requests(run_dir)
    first = next(rows, None)
    if first is None:
        return write_rows(path, (), [])
    names = tuple(first)
    return write_rows(path, names, ([row.get(name) for name in names] for row in itertools.chain([first], rows)))


def write_intervals(run_dir: Path, path: Path) -> int:
    """Writes intervals.csv and returns the number of rows."""
    return write_rows(path, HEADER, interval_rows(rundir.ticks(run_dir)))


def write_metrics(run_dir: Path, path: Path) -> int:
    """Writes metrics.csv and returns the number of rows."""
    return write_rows(path, METRICS_HEADER, metric_rows(rundir.read_report(run_dir)))


def metric_rows(report: Report) -> Iterator[list[Any]]:
    """The rows of metrics.csv, in the order of METRICS_HEADER; none for a metric without a value."""
    for part in parts(report):
        for metric, d in part.metrics.items():
            if d.count:
                bounds = [end for ends in astuple(d.ci95 or Ci95()) for end in ends]
                name = part.name or report.run.name
                yield [part.scope, name, metric, *(getattr(d, level) for level in LEVELS), d.n_eff, *bounds]


def interval_rows(ticks: Iterable[Snapshot]) -> Iterator[list[Any]]:
    """The rows of intervals.csv, in the order of HEADER."""
    for tick in ticks:
        for interval in tick.intervals:
            yield [*_columns(tick, interval), *_levels(interval)]


def _columns(tick: Snapshot, i: Interval) -> list[Any]:
    q, t = i.requests, i.tokens
    return [
        *(tick.tick, tick.wall_time_ns, tick.elapsed_s, tick.seconds, i.phase, i.target, i.measured, i.in_flight),
        *(q.planned, q.sent, q.ok, sum(q.failed.values()), q.cancelled, sum(q.unsent.values())),
        *(t.input, t.output, t.cached, t.reasoning, i.cost.usd),
        *(i.throughput.requests_per_s, i.throughput.output_tokens_per_s),
        *(i.itl_coalesced_share, i.connection_reused_share),
    ]


def _levels(interval: Interval) -> list[Any]:
    none = Distribution()
    return [getattr(interval.metrics.get(metric, none), level) for metric in METRICS for level in LEVELS]


def _literal(cell: Any) -> Any:
    """A cell that no spreadsheet runs: text beginning with one of = + - @ gets an apostrophe in front (OWASP)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Replaces `path` when all rows are written; returns how many there were."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for count, row in enumerate(rows, 1):  # noqa: B007  # counted for the caller
                writer.writerow([_literal(cell) for cell in row])
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    return count
