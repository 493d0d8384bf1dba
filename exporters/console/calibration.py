"""The results of `lens calibrate` and `lens verify` as tables on stdout. Imports rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...collectors.calibration.result import Calibration, Point, Quantiles
from .. import figures
from .final import print_out
from .tables import grid

HEADS: Final = ("ev/s", "p50", "p99", "p99.9", "TTFT", "ITL", "send", "late", "CPU", "cens.", "disc.")
LEGEND: Final = (
    "us: arrival error p50, p99, p99.9; p99 of the errors of TTFT and ITL, of send to wire, and of lateness; worker CPU per "
    "event. cens.: events without a stamp of their own. disc.: events whose true time nobody knows. +: the worker stopped "
    "for 30 ms five times a second."
)


def print_calibration(calibration: Calibration) -> None:
    """Prints the tables. Raises OutputError if stdout cannot be written."""
    title = Text.assemble(
        (f"calibration of {calibration.host.get('name')}", "bold"),
        f" ({calibration.host_hash}), version {calibration.version}, {figures.moment(calibration.at)}",
    )
    table = grid("streams", *HEADS, first=20)
    for point in calibration.points:
        table.add_row(_conditions(point), *_cells(point))
    ceiling = calibration.ceiling
    limits = Text.assemble(
        ("ceiling of one worker: ", "bold"),
        f"{_count(ceiling.events_per_s_per_worker)} events/s; "
        f"{_count(ceiling.requests_per_s_per_worker)} requests/s of one token; "
        f"{_count(ceiling.streams_per_worker)} streams of 20 tokens/s",
    )
    notes = [Text(f"note: {note.detail} ({note.code})") for note in calibration.notes]
    print_out(Group(title, Text(), table, Text(LEGEND, style="dim"), Text(), limits, *notes))


def errors_table(title: str, rows: Mapping[str, Quantiles]) -> Table:
    """One line per kind of error: p50, p99, p99.9 and the maximum, us."""
    table = grid(title, "p50", "p99", "p99.9", "max", first=20)
    for name, errors in rows.items():
        table.add_row(name, *(_us(each) for each in (errors.p50, errors.p99, errors.p99_9, errors.max)))
    return table


def _conditions(point: Point) -> str:
    return f"{point.streams} {point.transport} {point.mode.replace('_', ' ')}{' +' * point.client_stalls}"


def _cells(point: Point) -> list[str]:
    arrival = point.arrival_error_us
    errors = (arrival.p50, arrival.p99, arrival.p99_9, point.ttft_error_us.p99, point.itl_error_us.p99)
    others = (point.send_to_wire_us.p99, point.lateness_us.p99, point.cpu_us_per_event)
    return [
        _count(point.events_per_s),
        *map(_us, (*errors, *others)),
        figures.share(point.coalesced_share),
        figures.share(point.discarded_share),
    ]


def _us(value: float | None) -> str:
    return figures.MISSING if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"
