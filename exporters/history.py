"""The history of a probe: a folder of runs, one after the other. Follows the newest, reports any part of the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from ..collectors.alerts import Values, Window
from ..collectors.evidence import Evidence, Layout
from ..collectors.histogram import Histogram
from ..collectors.ladder import Ladder
from ..collectors.rollup import Slice
from ..collectors.run_ladders import RunLadders
from ..collectors.series import ENDED, NOBODY, Series, Slab
from ..collectors.slos import judge_slos
from ..collectors.snapshot import SNAPSHOT_DECODER, Reason, Report, Run, Snapshot, TargetReport, Verdict
from ..collectors.statistics import slice_of, unknown
from ..engine.errors import OutputError
from ..engine.files import UNDECODABLE
from ..engine.metrics import METRICS, SHARES
from ..engine.plan.plan import SECOND
from ..engine.records.record import Outcome
from ..engine.runs.rundir import INTERVALS as LOG
from .hdr.blocks import LineLadders, span_of
from .hdr.read import Line, filled, line_of
from .hdr.write import INTERVALS, tag
from .rundir import finished, read_report, ticks
from .spool.parts import view_at

ALL: Final = "\0"  # all targets together; "" is of the slots that had none
FAILED: Final = "e2e_ms."
HISTORY: Final = "history"  # folder of the state directory

Tagged = tuple[str, str]  # the two parts of a line's tag: a distribution's name and the target


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


class _OverTime:
    """What the intervals of a part of history rest on: the ticks of its runs, one after the other, counted from the
    start of the first run. A line of the log does not say its phase: with several measured ones their name is unknown."""

    def __init__(self) -> None:
        self.tick_ns = self.origin_ns = self.first = self.last = 0
        self.ladders = RunLadders()
        self.targets: dict[str, int] = {"": NOBODY}
        self.phases: set[str] = set()

    def tick_at(self, start_ns: int) -> int:
        """The tick that starts at this moment, Unix epoch."""
        return round((start_ns - self.origin_ns) / self.tick_ns)

    def add(self, snapshot: Snapshot) -> None:
        """Takes in what a tick counted; its distributions come from the other log."""
        length_ns = round(snapshot.seconds * SECOND)
        if not self.tick_ns:
            self.tick_ns = length_ns
            self.origin_ns = snapshot.wall_time_ns - round(snapshot.elapsed_s * SECOND)
            self.first = self.tick_at(snapshot.wall_time_ns - length_ns)
        self.last = self.tick_at(snapshot.wall_time_ns - length_ns)
        slab = Slab()
        for interval in snapshot.intervals:
            if interval.measured:
                self.phases.add(interval.phase)
                slab.at((0, self.target(interval.target))).add_counts(Series.restored(interval.counts, {}, {}))
        self.ladders.add(self.last, slab)

    def target(self, name: str) -> int:
        return self.targets.setdefault(name, len(self.targets) - 1)

    def evidence(
        self, distributions: Mapping[Tagged, Ladder], totals: Mapping[str, Series], seconds: float
    ) -> Evidence:
        """`distributions` by name and tag of the target, `totals` by target."""
        tags = {tag("", name)[1:]: number for name, number in self.targets.items()}
        for (name, target), ladder in distributions.items():
            metric = name.removesuffix(ENDED)
            if metric in METRICS and target in tags:
                self.ladders.ladders.put((0, tags[target], metric), ladder)
        slab = Slab()
        slab.series = {(0, self.target(name)): series for name, series in totals.items()}
        names = [name for name, number in self.targets.items() if number != NOBODY]
        layout = Layout([(min(self.phases) if len(self.phases) == 1 else "", True)], names, self.tick_ns)
        return Evidence(layout, slab, self.ladders, {0: seconds})


class _RunTicks:
    """The ticks of one run that end in (since, until], added up by target; `ALL` is of all targets."""

    def __init__(self, run_dir: Path, since_ns: int, until_ns: int, over_time: _OverTime) -> None:
        self.run_dir = run_dir
        self.report = _report_of(run_dir)
        self.slices: dict[str, Slice] = {}
        self.began_ns = self.ended_ns = 0
        self.complete = False  # these are all ticks of a run that has ended
        self._start_ns = 0  # of the run
        self._first_s = self._last_s = 0.0
        skipped = last = False
        for snapshot in ticks(run_dir):
            if not since_ns < snapshot.wall_time_ns <= until_ns:
                skipped = True
                continue
            if not self.ended_ns:
                self.began_ns = snapshot.wall_time_ns - round(snapshot.seconds * SECOND)
                self._start_ns = snapshot.wall_time_ns - round(snapshot.elapsed_s * SECOND)
                self._first_s = snapshot.elapsed_s - snapshot.seconds / 2
            self.ended_ns = snapshot.wall_time_ns
            self._last_s = snapshot.elapsed_s + snapshot.seconds / 2
            last = snapshot.state == "done"
            over_time.add(snapshot)
            for interval in snapshot.intervals:
                if interval.measured:
                    for name in {ALL, interval.target}:  # a slot that was not sent may have no target
                        self.slices.setdefault(name, Slice()).add(interval)
        self.complete = last and not skipped and finished(run_dir)

    def histograms(self, ladders: LineLadders[Tagged], over_time: _OverTime) -> None:
        """Adds the histograms of these ticks by (name, target). Those of requests by their end, where a tick has a
        distribution of what happened in it too."""
        by_end = {name for name in self.slices[ALL].moments if name.endswith(ENDED)} if self.slices else set()
        for text in Lines(self.run_dir / INTERVALS).new():
            line = line_of(text)
            if line is not None and self._first_s < line.end_s < self._last_s:
                name, _, target = line.tag.partition("/")
                if f"{name}{ENDED}" not in by_end:
                    tick = over_time.tick_at(self._start_ns + round(line.start_s * SECOND))
                    ladders.add((name, target), tick, line.encoded)

    @property
    def seconds(self) -> float:
        """What rates are over: the windows that the run itself used, of a part of it the time of its ticks."""
        if self.complete and self.report is not None:
            return sum(round(phase.window_s * SECOND) for phase in self.report.run.phases if phase.measured) / SECOND
        return (self.ended_ns - self.began_ns) / SECOND


def report_between(folder: Path, since_ns: int, until_ns: int) -> Report:
    """All runs of `folder` as one report, of the ticks that end in (since, until], Unix epoch ns.

    Of a complete run it equals summary.json field for field: counts are sums of the ticks, distributions are the sums
    of the ticks' histograms with their exact moments, and the same code makes both into numbers. Intervals of a complete
    run, and what is judged by them, are the summary's; of a part, or of several runs, they come from the ticks' own
    histograms and counts by the code that made those of the summary. Raises OutputError.
    """
    over_time = _OverTime()
    runs = (_RunTicks(run_dir, since_ns, until_ns, over_time) for run_dir in runs_of(folder))
    parts = [part for part in runs if part.ended_ns]
    if not parts:
        raise OutputError(f"{folder} has no ticks in that span of time")
    lines = LineLadders[Tagged](span_of(over_time.first, over_time.last))
    slices, known = dict[str, Slice](), dict[str, tuple[str, str]]()
    for part in parts:
        part.histograms(lines, over_time)
        if part.report is not None:
            known |= {target.name: (target.provider, target.model) for target in part.report.targets}
        for name, each in part.slices.items():
            slices.setdefault(name, Slice()).merge(each)
            if name not in (ALL, ""):
                known.setdefault(name, ("", ""))
    for name in (ALL, *known):
        slices.setdefault(name, Slice())
    seconds = sum(part.seconds for part in parts)
    last = read_report(parts[-1].run_dir)
    alone = parts[0] if len(parts) == 1 and parts[0].complete else None
    ladders = lines.all()
    distributions = {key: ladder.blocks().histogram() for key, ladder in ladders.items()}
    series = {name: _series(each, distributions, name) for name, each in slices.items()}
    evidence = over_time.evidence(ladders, {name: each for name, each in series.items() if name != ALL}, seconds)

    def fields(target: str | None, planned: int | None = None) -> dict[str, Any]:
        return slice_of(
            series[ALL if target is None else target],
            seconds,
            conditions=last.throughput.goodput_per_s is not None,
            date=last.cost.price_table_date,
            planned=planned,
            known=unknown if alone else evidence.part(target, None).view.confidence,
        )

    total = fields(None, last.requests.planned if alone else None)
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
    if alone:
        report.slo, report.steady, report.replies = last.slo, last.steady, last.replies
        _take_what_ticks_lack(report, last)
    else:
        report.replies = None  # ticks do not compare them
        report.slo = judge_slos([slo.expression for slo in last.slo])(report, evidence, series[ALL].lines)
    return report


def _take_what_ticks_lack(report: Report, known: Report) -> None:
    """The certainty of a run's distributions is that of their order in time, which their sums have lost; the server's own
    page was read at its ends."""
    parts: list[tuple[Report | TargetReport, Report | TargetReport]] = [(report, known)]
    for target, known_target in zip(report.targets, known.targets, strict=True):
        target.server, target.time = known_target.server, known_target.time
        parts.append((target, known_target))
    for part, source in parts:
        for name, distribution in source.metrics.items():
            mine = part.metrics[name]
            mine.n_eff, mine.ci95, mine.p99_9 = distribution.n_eff, distribution.ci95, distribution.p99_9


def _report_of(run_dir: Path) -> Report | None:
    """The run's own report; None where it was killed before it could write one."""
    try:
        return read_report(run_dir)
    except OutputError:
        return None


def _series(total: Slice, distributions: Mapping[Tagged, Histogram], target: str) -> Series:
    """The series that the ticks came from, but for its extremes of time. `distributions` by name and tag of the target."""
    wanted = tag("", target)[1:]
    names = [each for each in total.moments if f"{each}{ENDED}" not in total.moments]
    found = {name: Histogram() for name in names}
    for (name, each), histogram in distributions.items():
        if name in found and (target == ALL or each == wanted):
            found[name].add(histogram)
    histograms = {name.removesuffix(ENDED): each.with_moments(total.moments[name]) for name, each in found.items()}
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
