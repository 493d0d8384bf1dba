"""points.csv and report.html of a sweep's directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...collectors.snapshot import Ci95, Distribution
from ...collectors.sweep import DECODER, SweepReport
from ...engine import files
from ...engine.errors import OutputError
from ...engine.files import UNDECODABLE
from ...engine.metrics import METRICS, RATES
from ...engine.runs.rundir import HTML
from ..csv import write_rows
from .words import gpu_points

SWEEP: Final = "sweep.json"
POINTS: Final = "points.csv"
_LEVELS: Final = ("p50", "p90", "p95", "p99")
_GPU: Final = ("usd_per_million_output_tokens", "joules_per_output_token")
HEADER: Final = (
    *("value", "state", "run", "duration_s", "planned", "sent", "ok", "failed", *RATES),
    *(f"{metric}_{level}{end}" for metric in METRICS for level in _LEVELS for end in ("", "_low", "_high")),
    *_GPU,
)


def read_sweep(folder: Path) -> SweepReport:
    """sweep.json of a sweep's directory. Raises OutputError."""
    path = folder / SWEEP
    try:
        return DECODER.decode(path.read_bytes())
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from None
    except UNDECODABLE as error:
        raise OutputError(f"{path} is damaged: {error}") from None


def write_files(folder: Path, report: SweepReport) -> None:
    """Raises OutputError."""
    from .page import page_of

    write_rows(folder / POINTS, HEADER, _rows(report))
    page = page_of([(folder.name, report)])
    try:
        files.replace(folder / HTML, page.encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(f"{folder / HTML} cannot be written: {error.strerror}") from None


def _rows(report: SweepReport) -> Iterator[list[Any]]:
    """The rows of points.csv, by load, then in the order of their runs."""
    gpus = gpu_points(report)
    for point in sorted(report.points, key=lambda each: each.value):
        requests = point.requests
        row: list[Any] = [point.value, point.state, point.run, point.duration_s]
        row += [requests.planned, requests.sent, requests.ok, sum(requests.failed.values())]
        row += [getattr(point.throughput, name) for name in RATES]
        for metric in METRICS:
            d = point.metrics.get(metric, Distribution())
            ends = d.ci95 or Ci95()
            for level in _LEVELS:
                row += [getattr(d, level), *getattr(ends, level)]
        each = gpus.get(point.run)
        yield [*row, *(getattr(each, name) if each else None for name in _GPU)]
