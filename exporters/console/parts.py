"""The phases and steps of a run as tables of the final report. Imports rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import RenderableType
from rich.text import Text

from ...collectors.snapshot import Report
from .. import figures
from ..phase_rows import Row, phase_rows, step_rows
from ..setting import Setting
from .tables import grid, literal

COLUMN: Final = 10  # of a metric's level
LOAD: Final = 14


def phases(report: Report, setting: Setting, width: int) -> Iterator[RenderableType]:
    """A table of the phases if there are several, and one of the steps if there are any."""
    for title, rows in (("phases", phase_rows(report, setting.plan)), ("steps", step_rows(setting.steps))):
        if len(rows) > 1:
            yield Text()
            yield from _table(title, rows, width)


def _table(title: str, rows: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """With as many metrics as fit. Heads have no unit: a line below says them."""
    fit = max(1, (width - 42) // (2 * COLUMN))
    levels = {head: [row.levels[head] for row in rows] for head in list(rows[0].levels)[: 2 * fit]}
    table = grid(title, "load", "req/s", "failed", *(_short(head) for head in levels), first=8)
    for i, row in enumerate(rows):
        load = row.load if len(row.load) <= LOAD else f"{row.load[: LOAD - 1]}…"
        cells = [literal(load), figures.rate(row.requests_per_s), row.failed, *(each[i] for each in levels.values())]
        table.add_row(literal(row.name), *cells, style="" if row.measured else "dim")
    yield table
    units = dict.fromkeys(" in ".join(head.split()[:2]) for head in levels)
    notes = [", ".join(units), *(["the dim phase was not measured"] if any(not row.measured for row in rows) else [])]
    yield Text("; ".join(notes), style="dim")


def _short(head: str) -> str:
    """`TTFT p50` of `TTFT ms p50`."""
    name, _, level = head.split()
    return f"{name} {level}"
