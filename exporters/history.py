"""The history of a probe: a folder of runs, one after the other. Follows the newest, tells any stretch of the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from ..collectors.alerts import Values, Window
from ..collectors.histogram import Histogram
from ..collectors.snapshot import (
    METRICS,
    SCALES,
    SNAPSHOT_DECODER,
    Distribution,
    Reason,
    Report,
    Slice,
    TargetReport,
    Verdict,
)
from ..collectors.statistics import P99_9_NEEDS
from ..engine.errors import OutputError
from ..engine.files import UNDECODABLE
from ..engine.plan.plan import SECOND
from ..engine.runs.rundir import INTERVALS as LOG
from .hdr.read import Line, Sums, filled, line_of
from .hdr.write import INTERVALS, tag
from .rundir import read_report, ticks
from .spool.parts import view_at

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


def told_between(folder: Path, since_ns: int, until_ns: int) -> Report:
    """All runs of `folder` as one report, of the ticks that end in (since, until], Unix epoch ns.

    Exact: counts are sums of ticks, percentiles are of the sum of the ticks' histograms. Raises OutputError.
    """
    total, targets = Slice(), dict[str, TargetReport]()
    sums = Sums()
    began, ended, seen = until_ns, since_ns, list[Path]()
    for run_dir in runs_of(folder):
        models = _models(run_dir)
        found = False
        for snapshot in ticks(run_dir):
            if not since_ns < snapshot.wall_time_ns <= until_ns:
                continue
            found = True
            began = min(began, snapshot.wall_time_ns - round(snapshot.seconds * SECOND))
            ended = max(ended, snapshot.wall_time_ns)
            for interval in snapshot.intervals:
                if interval.measured:
                    _count(total, interval)
                if interval.measured and interval.target:  # what was not sent may have none
                    provider, model = models.get(interval.target, ("", ""))
                    plain = TargetReport(name=interval.target, provider=provider, model=model)
                    _count(targets.setdefault(interval.target, plain), interval)
        if found:
            seen.append(run_dir)
            _sum(run_dir / INTERVALS, since_ns, until_ns, sums)
    if not seen:
        raise OutputError(f"{folder} has no ticks in that stretch of time")
    seconds = (ended - began) / SECOND
    for part in (total, *targets.values()):
        name = tag("", part.name)[1:] if isinstance(part, TargetReport) else ""
        part.metrics = {metric: _distribution(sums.histogram((metric, name)), SCALES[metric]) for metric in METRICS}
        _rates(part, seconds)
    last = read_report(seen[-1])
    run = msgspec.structs.replace(
        last.run,
        id=f"{folder.name}: {len(seen)} runs" if len(seen) > 1 else last.run.id,
        started_at=datetime.fromtimestamp(began / SECOND, UTC).isoformat(timespec="milliseconds"),
        duration_s=seconds,
        phases=[],
    )
    return Report(
        run=run,
        verdict=_verdict(seen),
        requests=total.requests,
        throughput=total.throughput,
        tokens=total.tokens,
        cost=total.cost,
        metrics=total.metrics,
        targets=list(targets.values()),
        client=last.client,
    )


def _models(run_dir: Path) -> dict[str, tuple[str, str]]:
    try:
        return {target.name: (target.provider, target.model) for target in read_report(run_dir).targets}
    except OutputError:
        return {}


def _count(total: Slice, part: Slice) -> None:
    """Adds a tick's counts."""
    mine, its = total.requests, part.requests
    for name in ("planned", "sent", "ok", "cancelled", "in_flight_at_end", "attempts"):
        setattr(mine, name, getattr(mine, name) + getattr(its, name))
    for counts, added in ((mine.failed, its.failed), (mine.unsent, its.unsent)):
        for reason, count in added.items():
            counts[reason] = counts.get(reason, 0) + count
    for name in ("input", "output", "cached", "reasoning"):
        value = getattr(part.tokens, name)
        if value is not None:
            setattr(total.tokens, name, (getattr(total.tokens, name) or 0) + value)
    sources = {total.tokens.source, part.tokens.source} - {None}
    total.tokens.source = "mixed" if len(sources) > 1 else next(iter(sources), None)
    if part.cost.usd is not None:
        total.cost.usd = (total.cost.usd or 0.0) + part.cost.usd
    total.cost.priced_requests += part.cost.priced_requests
    total.cost.unpriced_requests += part.cost.unpriced_requests
    total.cost.price_table_date = part.cost.price_table_date or total.cost.price_table_date


def _sum(log: Path, since_ns: int, until_ns: int, sums: Sums) -> None:
    """Adds the intervals of one log that end in (since, until] to (metric, target) and (metric, "")."""
    base_s = 0.0
    for text in Lines(log).new():
        if text.startswith("#[BaseTime: "):
            base_s = float(text.split()[1])
        elif (line := line_of(text)) and since_ns < round((base_s + line.end_s) * SECOND) <= until_ns:
            metric, _, target = line.tag.partition("/")
            sums.add((metric, target), line.encoded)
            sums.add((metric, ""), line.encoded)


def _distribution(total: Histogram, scale: float) -> Distribution:
    ranks = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0} | (
        {"p99_9": 99.9} if total.count >= P99_9_NEEDS else {}
    )
    values = total.percentiles(list(ranks.values()))
    if values is None or total.mean is None or total.min is None or total.max is None or total.stddev is None:
        return Distribution()
    told = Distribution(
        count=total.count,
        mean=total.mean / scale,
        stddev=total.stddev / scale,
        min=total.min / scale,
        max=total.max / scale,
    )
    for name, value in zip(ranks, values, strict=True):
        setattr(told, name, value / scale)
    return told


def _rates(part: Slice, seconds: float) -> None:
    if seconds > 0:
        tokens = part.tokens
        part.throughput.requests_per_s = part.requests.ok / seconds
        if part.cost.usd is not None:
            part.cost.usd_per_day = part.cost.usd * 86_400 / seconds
            part.cost.usd_per_1k_requests = part.cost.usd * 1000 / max(1, part.cost.priced_requests)
        if tokens.output is not None:
            part.throughput.output_tokens_per_s = tokens.output / seconds
            part.throughput.total_tokens_per_s = (tokens.output + (tokens.input or 0)) / seconds


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
            reasons += [Reason(each.code, f"{run_dir.name}: {each.detail}") for each in verdict.reasons]
    state = "INVALID" if "INVALID" in states else "VALID" if "VALID" in states else "INSUFFICIENT"
    return Verdict(state=state, reasons=reasons)
