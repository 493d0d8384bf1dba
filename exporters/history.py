"""The history of a probe: a folder of runs, one after the other. Follows the newest, reports any part of the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from ..collectors.alerts import Values, Window
from ..collectors.rollup import Slice
from ..collectors.series import ENDED, Series
from ..collectors.slos import Evidence, judge_slos
from ..collectors.snapshot import SNAPSHOT_DECODER, Reason, Report, Run, TargetReport, Verdict
from ..collectors.statistics import slice_of
from ..engine.errors import OutputError
from ..engine.files import UNDECODABLE
from ..engine.metrics import METRICS, SHARES
from ..engine.plan.plan import SECOND
from ..engine.records.record import Outcome
from ..engine.runs.rundir import INTERVALS as LOG
from .hdr.read import Line, Sums, filled, line_of
from .hdr.write import INTERVALS, tag
from .rundir import finished, read_report, ticks
from .spool.parts import view_at

ALL: Final = "\0"  # all targets together; "" is of the slots that had none
FAILED: Final = "e2e_ms."
HISTORY: Final = "history"  # folder of the state directory


class Lines:
    """The complete lines that a growing log has got since the last look, wherever it was rotated meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[str]:
        try:
            while view := view_at(self._path, self._offset):
                with view:
                    if self._offset >= view.size:
                        return
                    for line in view.pread(view.size - self._offset, self._offset).splitlines(keepends=True):
                        if not line.endswith(b"\n"):
                            return
                        self._offset += len(line)
                        yield line.decode(errors="replace")
        except OSError:
            return


class Follower:
    """Carries the ticks of one run into a Window, and of its histograms those metrics that are wanted."""

    def __init__(self, run_dir: Path, window: Window, metrics: frozenset[str], targets: Iterable[str]) -> None:
        self._ticks = Lines(run_dir / LOG)
        self._histograms = Lines(run_dir / INTERVALS)
        self._window = window
        self._metrics = metrics
        self._names = {tag("", target)[1:]: target for target in targets}
        self._base_s = 0.0

    def follow(self) -> None:
        """Takes what is new."""
        for line in self._ticks.new():
            try:
                self._window.tick(SNAPSHOT_DECODER.decode(line))
            except UNDECODABLE:
                continue  # a damaged line; the report counts them
        for line in self._histograms.new() if self._metrics else ():
            if line.startswith("#[BaseTime: "):
                self._base_s = float(line.split()[1])
            elif interval := line_of(line):
                self._histogram(interval)

    def _histogram(self, line: Line) -> None:
        metric, _, target = line.tag.partition("/")
        if metric in self._metrics:
            end_ns = round((self._base_s + line.end_s) * SECOND)
            self._window.values(Values(end_ns, self._names.get(target, target), metric, filled(line.encoded)))


def runs_of(folder: Path) -> list[Path]:
    """The runs in `folder`, oldest first: a run directory itself, or the history of a probe's state directory."""
    history = folder / HISTORY if (folder / HISTORY).is_dir() else folder
    if (history / LOG).exists() or (history / "plan.json").exists():
        return [history]
    runs = sorted(each for each in history.iterdir() if (each / LOG).exists() and not each.is_symlink())
    if not runs:
        raise OutputError(f"{folder} holds no runs; give a run's directory, or a probe's --state-dir")
    return runs


class _RunTicks:
    """The ticks of one run that end in (since, until], added up by target; `""` is of all targets."""

    def __init__(self, run_dir: Path, since_ns: int, until_ns: int) -> None:
        self.run_dir = run_dir
        self.report = _report_of(run_dir)
        self.slices: dict[str, Slice] = {}
        self.began_ns = self.ended_ns = 0
        self.complete = False  # these are all ticks of a run that has ended
        self._first_s = self._last_s = 0.0
        skipped = last = False
        for snapshot in ticks(run_dir):
            if not since_ns < snapshot.wall_time_ns <= until_ns:
                skipped = True
                continue
            if not self.ended_ns:
                self.began_ns = snapshot.wall_time_ns - round(snapshot.seconds * SECOND)
                self._first_s = snapshot.elapsed_s - snapshot.seconds / 2
            self.ended_ns = snapshot.wall_time_ns
            self._last_s = snapshot.elapsed_s + snapshot.seconds / 2
            last = snapshot.state == "done"
            for interval in snapshot.intervals:
                if interval.measured:
                    for name in {ALL, interval.target}:  # a slot that was not sent may have no target
                        self.slices.setdefault(name, Slice()).add(interval)
        self.complete = last and not skipped and finished(run_dir)

    def histograms(self, sums: Sums) -> None:
        """Adds the histograms of these ticks to (name, target) and (name, ALL)."""
        for text in Lines(self.run_dir / INTERVALS).new():
            line = line_of(text)
            if line is not None and self._first_s < line.end_s < self._last_s:
                name, _, target = line.tag.partition("/")
                for key in {(name, ALL), (name, target)}:
                    sums.add(key, line.encoded)

    @property
    def seconds(self) -> float:
        """What rates are over: the windows that the run itself used, of a part of it the time of its ticks."""
        if self.complete and self.report is not None:
            return sum(round(phase.window_s * SECOND) for phase in self.report.run.phases if phase.measured) / SECOND
        return (self.ended_ns - self.began_ns) / SECOND


def report_between(folder: Path, since_ns: int, until_ns: int) -> Report:
    """All runs of `folder` as one report, of the ticks that end in (since, until], Unix epoch ns.

    Of a complete run it equals summary.json field for field: counts are sums of the ticks, distributions are the sums
    of the ticks' histograms with their exact moments, and the same code makes both into numbers. Raises OutputError.
    """
    parts = [part for run_dir in runs_of(folder) if (part := _RunTicks(run_dir, since_ns, until_ns)).ended_ns]
    if not parts:
        raise OutputError(f"{folder} has no ticks in that span of time")
    sums, slices = Sums(), dict[str, Slice]()
    known: dict[str, tuple[str, str]] = {}
    for part in parts:
        part.histograms(sums)
        if part.report is not None:
            known |= {target.name: (target.provider, target.model) for target in part.report.targets}
        for name, each in part.slices.items():
            slices.setdefault(name, Slice()).merge(each)
            if name not in (ALL, ""):
                known.setdefault(name, ("", ""))
    seconds = sum(part.seconds for part in parts)
    last = read_report(parts[-1].run_dir)
    alone = parts[0] if len(parts) == 1 and parts[0].complete else None

    def fields(target: str, planned: int | None = None) -> dict[str, Any]:
        each = slices.get(target) or Slice()
        return slice_of(
            _series(each, sums, target),
            seconds,
            conditions=last.throughput.goodput_per_s is not None,
            date=last.cost.price_table_date,
            planned=planned,
        )

    total = fields(ALL, last.requests.planned if alone else None)
    report = Report(
        run=last.run if alone else _run(folder, parts, last),
        verdict=last.verdict if alone else _verdict([part.run_dir for part in parts]),
        targets=[
            TargetReport(name=name, provider=provider, model=model, **fields(name))
            for name, (provider, model) in known.items()
        ],
        client=last.client,
        errors=last.errors if alone else [],
        **{name: value for name, value in total.items() if name not in SHARES},
    )
    lines = _series(slices.get(ALL) or Slice(), sums, ALL).lines
    judge = judge_slos([slo.expression for slo in last.slo])
    report.slo = last.slo if alone else judge(Evidence(report, lines, lambda target, phase: None))
    return report


def _report_of(run_dir: Path) -> Report | None:
    """The run's own report; None where it was killed before it could write one."""
    try:
        return read_report(run_dir)
    except OutputError:
        return None


def _series(total: Slice, sums: Sums, target: str) -> Series:
    """The series that the ticks came from, but for its extremes of time."""
    name = tag("", target)[1:]
    histograms = {  # of requests by their end, where a tick has a distribution of what happened in it too
        each.removesuffix(ENDED): sums.histogram((each, name)).with_moments(moments)
        for each, moments in total.moments.items()
        if f"{each}{ENDED}" not in total.moments
    }
    metrics = {each: histogram for each, histogram in histograms.items() if each in METRICS}
    failures = {
        Outcome[each.removeprefix(FAILED).upper()]: histogram
        for each, histogram in histograms.items()
        if each.startswith(FAILED)
    }
    return Series.restored(total.counts, metrics, failures)


def _run(folder: Path, parts: list[_RunTicks], last: Report) -> Run:
    began_ns, ended_ns = parts[0].began_ns, parts[-1].ended_ns
    return msgspec.structs.replace(
        last.run,
        id=f"{folder.name}: {len(parts)} runs" if len(parts) > 1 else last.run.id,
        started_at=datetime.fromtimestamp(began_ns / SECOND, UTC).isoformat(timespec="milliseconds"),
        duration_s=(ended_ns - began_ns) / SECOND,
        phases=[],
    )


def _verdict(run_dirs: list[Path]) -> Verdict:
    """INVALID if one of the runs is, with the reasons of all by their run; a few probes alone are no reason."""
    reasons: list[Reason] = []
    states: set[str] = set()
    for run_dir in run_dirs:
        try:
            verdict = read_report(run_dir).verdict
        except OutputError as error:
            verdict = Verdict(state="INVALID", reasons=[Reason("unfinished", str(error))])
        states.add(verdict.state)
        if verdict.state == "INVALID":
            reasons += [Reason(each.code, f"{run_dir.name}: {each.detail}", each.note) for each in verdict.reasons]
    state = "INVALID" if "INVALID" in states else "VALID" if "VALID" in states else "INSUFFICIENT"
    return Verdict(state=state, reasons=reasons)
