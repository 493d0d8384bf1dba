"""A comparison on stdout: the sentence, a table, the notes. Imports rich."""

from __future__ import annotations

from typing import Final

from rich.console import Group
from rich.text import Text

from ...collectors.compare import Compared
from ..compare.words import HEADS, cells, sentence
from .final import print_out
from .tables import grid, literal
from .terminal import printable

STYLES: Final = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "UNDECIDED": "bold yellow",
    "worse": "bold red",
    "better": "green",
    "undecided": "yellow",
}


def print_comparison(compared: Compared) -> None:
    """Raises OutputError if stdout cannot be written."""
    several = len({each.target for each in compared.comparisons}) > 1
    skipped = 0 if several else 1  # one target's name says nothing in every row
    state, _, rest = sentence(compared).partition(":")
    heading = Text.assemble((state, STYLES[state]), ":", printable(rest))
    table = grid(*HEADS[skipped:], first=12)
    for comparison in compared.comparisons:
        row = [literal(cell) for cell in cells(comparison)[skipped:]]
        table.add_row(*row, style=STYLES.get(comparison.verdict, ""))
    notes = Text("\n".join(f"- {printable(note.detail)} ({note.code})" for note in compared.notes))
    print_out(Group(heading, Text(), table, Text(), notes))
