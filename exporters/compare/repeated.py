"""The directory of repeated runs: its index repeat.json, which runs belong to which side, and what they are compared to.

`lens run --repeat` writes it, `lens compare` reads it again. Each run is an ordinary run directory in it. The index is
replaced after every run, so that what was killed in the middle can still be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from ...collectors.snapshot import SCHEMA, Reason
from ...collectors.spread import Repeated, repeated
from ...engine.errors import OutputError, PlanError
from ...engine.files import UNDECODABLE, replace
from ...engine.runs.rundir import REPEAT
from ..rundir import finished, read_report
from .questions import questions_of
from .read import invalid, read_run

COMPARISON: Final = "comparison.json"
SPREAD: Final = "spread.json"
MARGIN: Final = 0.05  # of a question whose sides are the same runs: nothing is judged by it

Side = Literal["base", "candidate", "run"]


class RepeatedRun(msgspec.Struct, kw_only=True):
    """One run that was started: `run` is its id and the name of its directory."""

    run: str
    side: Side
    seed: int
    state: Literal["running", "done", "failed", "interrupted"] = "running"
    detail: str = ""  # why it failed, or which objectives failed in it


class Repetition(msgspec.Struct, kw_only=True):
    """repeat.json. `base` and `candidate` say what each side is; without `--against` there is no base."""

    schema: int = SCHEMA
    id: str
    name: str
    version: str
    started_at: str  # ISO 8601, UTC
    seed: int
    repeat: int
    base: str | None
    candidate: str
    runs: list[RepeatedRun] = []

    def write(self, folder: Path) -> None:
        """Replaces the index. Raises OutputError."""
        try:
            replace(folder / REPEAT, msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        except OSError as error:
            raise OutputError(f"{folder / REPEAT} cannot be written: {error.strerror}") from None


class SidesOf(NamedTuple):
    """The complete runs of a directory of repeated runs, and notes on what they are and on those that are missing."""

    base: list[Path]
    candidate: list[Path]
    notes: list[Reason]


def is_repeated(folder: Path) -> bool:
    return (folder / REPEAT).is_file()


def read_repetition(folder: Path) -> Repetition:
    """Raises OutputError."""
    try:
        return msgspec.json.decode((folder / REPEAT).read_bytes(), type=Repetition)
    except UNDECODABLE as error:
        raise OutputError(f"{folder / REPEAT} is damaged: {error}") from None
    except OSError as error:
        raise OutputError(f"{folder / REPEAT} cannot be read: {error.strerror}") from None


def sides_of(folder: Path) -> SidesOf:
    """Base and candidate of a directory that `--against` made; without it all runs are the candidate's."""
    index = read_repetition(folder)
    done = [each for each in index.runs if each.state == "done"]
    base, candidate = (
        [folder / each.run for each in done if (each.side == "base") == first] for first in (True, False)
    )
    notes = []
    if index.base is not None:
        same = "; both are the same, so that any difference is noise" if index.base == index.candidate else ""
        notes.append(Reason("sides", f"base: {index.base}; candidate: {index.candidate}{same}"))
    else:
        notes.append(Reason("sides", f"runs of {index.candidate}"))
    for number, each in enumerate(index.runs, 1):
        what = f"run {number} ({each.side}, {each.run})" if each.side != "run" else f"run {number} ({each.run})"
        if each.state == "done" and each.detail:
            notes.append(Reason("failed_objective", f"{what}: {each.detail}"))
        if each.state != "done":
            why = f": {each.detail}" if each.detail else ""
            state = "is not finished" if each.state == "running" else f"was {each.state}" if not why else each.state
            notes.append(Reason(f"{each.state}_run", f"{what} {state}{why}; it is left out"))
    wanted = index.repeat * (1 if index.base is None else 2)
    if len(done) < wanted:
        notes.append(Reason("fewer_runs", f"{len(done)} of {wanted} runs are complete"))
    return SidesOf(base, candidate, notes)


def spread_of_runs(folder: Path, runs: Sequence[Path], notes: Sequence[Reason], *, steady: bool = False) -> Repeated:
    """How the complete runs of a directory differ. Raises PlanError and OutputError."""
    if not runs:
        raise OutputError(f"{folder} has no complete run: {'; '.join(note.detail for note in notes)}")
    read = [read_run(path) for path in runs]
    questions, further = questions_of(read, read, margin=MARGIN, steady=steady)
    disturbed = invalid(read)
    if disturbed:
        further.append(Reason("invalid_run", f"the client disturbed what it measured in {', '.join(disturbed)}"))
    further = list({note.detail: note for note in further}.values())  # both sides are the same runs
    return repeated(questions, runs=[run.report.run.id for run in read], notes=[*notes, *further])


def named_sides(base: Sequence[Path], candidate: Sequence[Path]) -> SidesOf:
    """The runs that paths name: a directory of repeated runs of one side stands for its complete runs."""
    found: tuple[list[Path], list[Path]] = [], []
    notes: list[Reason] = []
    for name, side, paths in zip(("base", "candidate"), found, (base, candidate), strict=True):
        for path in paths:
            if not is_repeated(path):
                side.append(path)
                continue
            inner = sides_of(path)
            if inner.base:
                raise PlanError(
                    f"{path} holds runs of a base and of a candidate: compare it by itself (lens compare {path}), "
                    f"or name runs in it"
                )
            side += inner.candidate
            notes += [Reason(note.code, f"{name}: {note.detail}") for note in inner.notes]
    return SidesOf(*found, notes)


def own_sides(folder: Path) -> SidesOf:
    """The sides of a directory that is compared by itself. Raises PlanError and OutputError."""
    if not is_repeated(folder):
        raise PlanError("nothing to compare with: lens compare BASE... -- CANDIDATE...")
    index = read_repetition(folder)
    if index.base is None:
        raise PlanError(
            f"{folder} holds runs of one side; name another to compare with: lens compare {folder} -- CANDIDATE..."
        )
    found = sides_of(folder)
    for name, side in (("base", found.base), ("candidate", found.candidate)):
        if not side:
            why = "; ".join(note.detail for note in found.notes[1:])
            raise OutputError(f"{folder} has no complete run of the {name}: there is nothing to compare ({why})")
    return found


def is_complete(run_dir: Path) -> bool:
    """Whether the run came to the end of its plan: a signal may come after that and before its process ends."""
    try:
        return finished(run_dir) and read_report(run_dir).run.ended_by != "interrupted"
    except OutputError:
        return False


def failed_objectives(run_dir: Path) -> str:
    """The objectives of a run that failed."""
    return "; ".join(f"{slo.expression} failed" for slo in read_report(run_dir).slo if slo.state == "FAIL")


def failure_of(run_dir: Path) -> str:
    """Why a run that ended with an error failed, as far as its summary says."""
    try:
        report = read_report(run_dir)
    except OutputError:
        return ""
    if report.requests.ok or not report.errors:
        return ""
    worst = max(report.errors, key=lambda each: each.count)
    return f"{report.requests.sent} requests sent, none ok, most are {worst.outcome}: {' '.join(worst.message.split())}"
