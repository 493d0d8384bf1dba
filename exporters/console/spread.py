"""Repeated runs on stdout: each statistic with its interval over the runs, and how much the runs differ. Imports rich."""

from __future__ import annotations

from typing import Final

from rich.console import Group
from rich.text import Text

from ...collectors.spread import Repeated, Spread
from .. import figures
from ..compare.words import statistic_label, statistic_value
from .final import print_out
from .tables import grid, literal
from .terminal import printable

HEADS: Final = ("metric", "mean", "95 % interval", "min", "max", "between runs", "can be found")


def print_spread(repeated: Repeated) -> None:
    """Raises OutputError if stdout cannot be written."""
    several = len({each.target for each in repeated.statistics}) > 1
    table = grid(*(("target",) if several else ()), *HEADS, first=12)
    for each in repeated.statistics:
        table.add_row(*([literal(each.target)] if several else []), *map(literal, cells(each)))
    runs = f"{len(repeated.runs)} run{'s' * (len(repeated.runs) != 1)}"
    meaning = f"can be found: the increase that {runs} a side find in 9 of 10 comparisons"
    notes = Text("\n".join(f"- {printable(note.detail)} ({note.code})" for note in repeated.notes))
    print_out(Group(Text(f"{runs}, one after the other", "bold"), Text(), table, Text(), Text(meaning, "dim"), notes))


def cells(each: Spread) -> tuple[str, ...]:
    """A row under HEADS."""

    def shown(number: float | None) -> str:
        return statistic_value(each.metric, number)

    low, high = each.ci95
    return (
        statistic_label(each.metric, each.statistic),
        shown(each.mean),
        figures.MISSING if low is None or high is None else f"{shown(low)} .. {shown(high)}",
        shown(min(each.values, default=None)),
        shown(max(each.values, default=None)),
        figures.MISSING if each.stddev_share is None else f"{each.stddev_share:.1%}",
        figures.MISSING if each.finds is None else f"{each.finds:+.1%}",
    )
