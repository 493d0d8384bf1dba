"""Compares run directories: reads them, refuses unlike ones, asks the questions, answers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...collectors.compare import Compared, compare
from ...collectors.snapshot import Reason
from ...engine.errors import PlanError
from .questions import Named, questions_of
from .read import RunDirectory, differences, invalid, read_run


class Runs(NamedTuple):
    """The runs of both sides."""

    base: list[RunDirectory]
    candidate: list[RunDirectory]


def compare_runs(
    base: Sequence[Path],
    candidate: Sequence[Path],
    *,
    margin: float,
    metrics: Sequence[str] = (),
    steady: bool = False,
    across: bool = False,
    first_notes: Sequence[Reason] = (),
) -> tuple[Compared, Runs]:
    """`first_notes` come before all others: what the sides are. Raises PlanError for arguments and unlike runs, OutputError for directories that cannot be used."""
    wanted = named(metrics)
    runs = Runs([read_run(path) for path in base], [read_run(path) for path in candidate])
    everything = [*runs.base, *runs.candidate]
    twice = _twice([run.report.run.id for run in everything])
    if twice:
        raise PlanError(f"run {twice} is given twice; each run counts once")
    unlike = differences(everything)
    if unlike and not across:
        raise PlanError(f"the runs are not alike ({'; '.join(unlike)}); --across compares them all the same")
    questions, notes = questions_of(runs.base, runs.candidate, margin=margin, wanted=wanted, steady=steady)
    disturbed = invalid(everything)
    if disturbed:
        notes.append(Reason("invalid_run", f"the client disturbed what it measured in {', '.join(disturbed)}"))
    if unlike:
        notes.append(Reason("across", f"the runs are not alike: {'; '.join(unlike)}"))
    ids = ([run.report.run.id for run in side] for side in runs)
    compared = compare(questions, base=next(ids), candidate=next(ids), margin=margin, notes=notes)
    compared.notes[:0] = first_notes
    if disturbed and compared.state == "PASS":
        compared.state = "UNDECIDED"
    return compared, runs


def named(metrics: Sequence[str]) -> list[Named]:
    """The statistics of `--metric`, each once. Raises PlanError."""
    return list(dict.fromkeys(map(Named.parse, metrics)))


def _twice(ids: Sequence[str]) -> str:
    return next((each for each in ids if ids.count(each) > 1), "")
