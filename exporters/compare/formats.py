"""A comparison as Markdown for a pull request, and as JUnit XML for a CI. Pure."""

from __future__ import annotations

from typing import Final

from ...collectors.compare import Compared, Comparison
from ..junit import Case, document
from ..markdown import plain, table
from .words import HEADS, cells, described, label, sentence, sides

_ALIGN: Final = ("---", "---", "---:", "---:", "---:", "---:", "---")


def markdown(compared: Compared) -> str:
    """The sentence, one table, the notes and the runs."""
    rows = [_bold(tuple(map(plain, cells(each)))) for each in compared.comparisons]
    lines = [f"**{plain(sentence(compared))}**", "", *table(HEADS, _ALIGN, rows), ""]
    lines += [f"- {plain(note.detail)}" for note in compared.notes]
    return "\n".join([*lines, "", f"<sub>{plain(sides(compared))}</sub>", ""])


def _bold(row: tuple[str, ...]) -> tuple[str, ...]:
    return (*row[:-1], f"**{row[-1]}**") if row[-1] == "worse" else row


def junit(compared: Compared) -> bytes:
    """One test case per comparison: worse is a failure, undecided is skipped."""
    notes = [sentence(compared), *(f"{note.code}: {note.detail}" for note in compared.notes), sides(compared)]
    return document("lens compare", [_case(each) for each in compared.comparisons], notes)


def _case(comparison: Comparison) -> Case:
    name, text = f"{comparison.metric}.{comparison.statistic}", described(comparison)
    if comparison.verdict == "worse":
        return Case(comparison.target, name, "failure", text, " | ".join(cells(comparison)))
    if comparison.verdict == "undecided":
        return Case(comparison.target, name, "skipped", f"undecided: {text}")
    return Case(comparison.target, name, "passed", f"{comparison.verdict}: {label(comparison)}")
