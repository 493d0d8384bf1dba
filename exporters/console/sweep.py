"""A sweep on stdout: the answer, a table of its points, knee, peak and what it took. Imports rich."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from ...collectors.sweep import SweepReport
from ..sweep.words import GPU_HEADS, cells, facts, gpu_cells, gpu_points, heads, load, sentence
from .final import print_out
from .tables import grid, literal
from .terminal import printable

STYLES: Final = {
    "FOUND": "bold green",
    "ABOVE_RANGE": "bold green",
    "BELOW_RANGE": "bold red",
    "CLIENT_LIMITED": "bold yellow",
    "UNDECIDED": "bold yellow",
    "PASS": "green",
    "FAIL": "red",
}


def print_sweep(report: SweepReport) -> None:
    """Raises OutputError if stdout cannot be written."""
    state, _, rest = sentence(report).partition(":")
    first, *others = heads(report)
    table = grid(first, *others, first=8)
    points = sorted(report.points, key=lambda each: each.value)
    for point in points:
        row = [literal(cell) for cell in cells(report, point)]
        row[1] = f"[{STYLES[point.state]}]{point.state}[/]"
        table.add_row(*row)
    parts: list[RenderableType] = [table, Text()]
    gpus = gpu_points(report)
    if gpus:
        priced = grid(first, *GPU_HEADS, first=8)
        for point in points:
            priced.add_row(load(point.value), *gpu_cells(gpus[point.run]))
        parts += [priced, Text()]
    heading = Text.assemble((state, STYLES[state]), ":", printable(rest))
    print_out(Group(heading, Text(), *parts, *map(Text, facts(report))))
