"""Compares two sweeps: what they bear, and point by point what was measured at the loads that both have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ...collectors.compare import Compared, Observed, Question, compare
from ...collectors.snapshot import Reason
from ...collectors.sweep import SweepPoint, SweepReport
from ...engine.errors import PlanError
from ..html.markup import document, element
from ..sweep.files import SWEEP, read_sweep
from ..sweep.page import curves
from ..sweep.words import UNITS, load
from .page import head_of
from .questions import questions_of
from .read import differences, invalid, read_run
from .run import named
from .words import CAPACITY

_EVERYTHING: Final = "all targets"


class Sweep(NamedTuple):
    path: Path
    report: SweepReport


def is_sweep(path: Path) -> bool:
    return (path / SWEEP).exists()


def compare_sweeps(
    base: Sequence[Path],
    candidate: Sequence[Path],
    *,
    margin: float,
    metrics: Sequence[str] = (),
    steady: bool = False,
    across: bool = False,
) -> tuple[Compared, list[Sweep]]:
    """Raises PlanError for arguments and unlike sweeps, OutputError for directories that cannot be used."""
    if len(base) != 1 or len(candidate) != 1 or not (is_sweep(base[0]) and is_sweep(candidate[0])):
        swept = next(each for each in (*base, *candidate) if is_sweep(each))
        raise PlanError(f"{swept} is the directory of a sweep; two are compared by lens compare SWEEP -- SWEEP")
    sweeps = [Sweep(path, read_sweep(path)) for path in (base[0], candidate[0])]
    if sweeps[0].path.resolve() == sweeps[1].path.resolve():
        raise PlanError(f"sweep {sweeps[0].path} is given twice")
    one, other = (each.report for each in sweeps)
    if one.over != other.over:
        raise PlanError(f"one sweep is over {one.over}, the other over {other.over}: there is nothing to compare")
    unlike = [f"objectives: {'; '.join(one.slo)} against {'; '.join(other.slo)}"] if one.slo != other.slo else []
    wanted = named(metrics)
    questions: list[Question] = [] if wanted else [*_capacity(one, other, margin)]
    notes: list[Reason] = []
    common = _common(one, other)
    for value, (before, after) in common.items():
        runs = [read_run(each.path / point.run) for each, point in zip(sweeps, (before, after), strict=True)]
        unlike += [each for each in differences(runs) if each not in unlike]
        at = f"{load(value)} {UNITS[one.over]}"
        found, noted = questions_of(runs[:1], runs[1:], margin=margin, wanted=wanted, steady=steady)
        questions += [dataclasses.replace(each, target=f"{each.target} at {at}") for each in found]
        notes += [Reason(each.code, f"at {at}: {each.detail}") for each in noted]
        notes += [Reason("invalid_run", f"at {at}: the client disturbed {each}") for each in invalid(runs)]
    if unlike and not across:
        raise PlanError(f"the sweeps are not alike ({'; '.join(unlike)}); --across compares them all the same")
    if not common:
        notes.append(Reason("no_common_load", "no load was measured in both: only what they bear can be compared"))
    if unlike:
        notes.append(Reason("across", f"the sweeps are not alike: {'; '.join(unlike)}"))
    names = [each.path.resolve().name for each in sweeps]
    compared = compare(questions, base=names[:1], candidate=names[1:], margin=margin, notes=notes)
    return compared, sweeps


def _capacity(one: SweepReport, other: SweepReport, margin: float) -> list[Question]:
    """Whether the answer differs; not asked where a side has none."""
    sides = []
    for report in (one, other):
        answer = report.answer
        known = answer.state == "FOUND" and answer.value
        sides.append([Observed(answer.value, *answer.ci95)] if known and answer.value else [])
    if not all(sides):
        return []
    return [Question(_EVERYTHING, CAPACITY, one.over, sides[0], sides[1], margin, higher_is_better=True)]


def _common(one: SweepReport, other: SweepReport) -> Mapping[float, tuple[SweepPoint, SweepPoint]]:
    """The loads that both measured without this client in the way, each by its longest run."""
    sides = [_longest(report) for report in (one, other)]
    return {value: (sides[0][value], sides[1][value]) for value in sorted(sides[0].keys() & sides[1].keys())}


def _longest(report: SweepReport) -> dict[float, SweepPoint]:
    usable = [point for point in report.points if point.state != "CLIENT_LIMITED" and point.requests.ok]
    return {point.value: point for point in sorted(usable, key=lambda each: each.requests.ok)}


def page_of(compared: Compared, sweeps: Sequence[Sweep]) -> str:
    """The page as text: the verdict, both sweeps' curves over one another, the table."""
    drawn = [(each.path.resolve().name, each.report) for each in sweeps]
    head, statistics = head_of(compared)
    return document(f"{compared.state} - LLM Latency Lens", element("h1", "Sweeps"), head, *curves(drawn), statistics)
