"""From runs to the questions that are asked of them: which statistics, and each run's value of each.

Where both sides have one run, and for `steady`, distributions come from the blocks of intervals.hlog and rates from the
ticks of intervals.jsonl; else all values are those of summary.json.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from ...collectors.compare import Observed, Question
from ...collectors.confidence import QUANTILES, batch_means, confidence, student
from ...collectors.ladder import Blocks
from ...collectors.paired import paired_bounds
from ...collectors.rollup import Slice
from ...collectors.series import ENDED
from ...collectors.snapshot import Reason, TargetReport
from ...engine.errors import OutputError, PlanError
from ...engine.metrics import METRICS, SCALES
from ..hdr.blocks import Timed, ladders_of
from ..hdr.write import tag
from ..rundir import ticks
from .read import RunDirectory

SUCCESS: Final = "success_share"
SUCCESS_MARGIN: Final = 0.01  # the most by which the share of successful requests may differ and be called the same
RATES: Final = ("requests_per_s", "output_tokens_per_s", "goodput_per_s")
LATENCIES: Final = ("ttft_ms", "itl_ms", "e2e_ms")
TAILS: Final = ("p99", "p95", "p90")
BEYOND: Final = 5  # values above a quantile from which a run has one to compare
FOREVER_S: Final = 1e9  # ends after every run
_FEWEST_TICKS: Final = 10


class Named(NamedTuple):
    """A statistic, as `--metric` names it: `ttft_ms.p99`, `requests_per_s`, `success_share`."""

    metric: str
    statistic: str

    @classmethod
    def parse(cls, text: str) -> Named:
        """Raises PlanError."""
        metric, _, statistic = text.partition(".")
        statistic = statistic.replace(".", "_")
        if metric in (*RATES, SUCCESS) and statistic in ("", "mean"):
            return cls(metric, "mean")
        if metric not in METRICS:
            known = ", ".join((*METRICS, *RATES, SUCCESS))
            raise PlanError(f"--metric {text}: there is no metric {metric!r}; there are {known}")
        if statistic not in ("mean", *QUANTILES):
            raise PlanError(f"--metric {text}: give a statistic, such as {metric}.p50: mean, {', '.join(QUANTILES)}")
        return cls(metric, statistic)


class Pair(NamedTuple):
    """A target of the base and the one of the candidate that it is compared with."""

    base: str
    candidate: str

    @property
    def label(self) -> str:
        return self.base if self.base == self.candidate else f"{self.base} -> {self.candidate}"


def pairs_of(base: Sequence[RunDirectory], candidate: Sequence[RunDirectory]) -> list[Pair]:
    """Targets of the same name; the only ones of both sides whatever their names. Raises PlanError if there is none."""
    sides = [[[each.name for each in run.report.targets] for run in side] for side in (base, candidate)]
    if all(len(names) == 1 and names == side[0] for side in sides for names in side):
        return [Pair(sides[0][0][0], sides[1][0][0])]
    common = [name for name in sides[0][0] if all(name in names for side in sides for names in side)]
    if not common:
        found = "; ".join(", ".join(side[0]) for side in sides)
        raise PlanError(f"the runs have no target in common ({found})")
    return [Pair(name, name) for name in common]


class Values:
    """The values of one run's statistics. `detailed`: with intervals from blocks; `steady`: of the steady window."""

    def __init__(self, run: RunDirectory, target: str, *, detailed: bool, steady: bool) -> None:
        self.run = run
        self.target = target
        self.steady = steady
        self.blocks = detailed or steady
        found = run.target(target)
        assert found is not None  # pairs_of has seen it
        self.report: TargetReport = found
        self._ladders: dict[str, Timed] = {}
        self._read: set[str] = set()

    def observed(self, named: Named) -> Observed | None:
        """The statistic of this run; None where the sample is too small for it or the run has none."""
        if named.metric in METRICS:
            return self._of_blocks(named) if self.blocks else self._of_summary(named)
        return self._rate(named.metric)

    def count(self, metric: str) -> int:
        """How many values a distribution rests on; pooled gaps count a stream once, as those of one are alike."""
        found = self.report.metrics.get(metric)
        return min(found.count, self.report.requests.ok) if found else 0

    def _of_summary(self, named: Named) -> Observed | None:
        found = self.report.metrics.get(named.metric)
        value = getattr(found, named.statistic) if found else None
        return None if value is None or not self._enough(named, self.count(named.metric)) else Observed(value)

    def _enough(self, named: Named, count: int) -> bool:
        return named.statistic == "mean" or count * (1 - QUANTILES[named.statistic]) >= BEYOND

    def load(self, metrics: Iterable[str]) -> None:
        """Reads the blocks of these metrics in one pass over the log. Raises OutputError."""
        missing = {each for each in metrics if each in METRICS} - self._read
        if not self.blocks or not missing:
            return
        self._read |= missing
        # Of requests by their end where there are both: those are the run's, and not in the coarse cells of a tick's.
        tags = {tag(f"{metric}{end}", self.target): metric for end in ("", ENDED) for metric in missing}
        try:
            found = ladders_of(self.run.path, tags)
            self._ladders |= {metric: found[name] for name, metric in tags.items() if name in found}
        except FileNotFoundError:
            raise OutputError(f"{self.run.path} has no intervals.hlog: its blocks are not known") from None
        except (OSError, EOFError, zlib.error) as error:  # a compressed part
            raise OutputError(f"{self.run.path / 'intervals.hlog'} is damaged: {error}") from None

    def _of_blocks(self, named: Named) -> Observed | None:
        timed = self._ladders.get(named.metric)
        if timed is None:
            return None
        blocks = self._window(timed)
        count = min(int(blocks.totals.sum()), self.count(named.metric))
        if not count or not self._enough(named, count):
            return None
        scale = SCALES[named.metric]
        interval = confidence(blocks).intervals.get(named.statistic)
        if interval is None:  # too few blocks for an interval: the value alone
            histogram = blocks.histogram()
            values = histogram.percentiles([100 * QUANTILES.get(named.statistic, 0.5)])
            value = histogram.mean if named.statistic == "mean" else values[0] if values else None
            return None if value is None else Observed(value / scale)
        low, high = (None if bound is None else bound / scale for bound in (interval.low, interval.high))
        return Observed(interval.value / scale, low, high)

    def timed(self, metric: str) -> Timed | None:
        """The blocks of a distribution over the complete run; None where none were read."""
        return self._ladders.get(metric)

    def _window(self, timed: Timed) -> Blocks:
        blocks = timed.ladder.blocks()
        if not self.steady:
            return blocks
        start_s, end_s = self.window_s
        return blocks.between(round(start_s / timed.tick_s), round(min(end_s, FOREVER_S) / timed.tick_s))

    @property
    def window_s(self) -> tuple[float, float]:
        """The steady window that the run itself found, in s since its start."""
        found = self.run.report.steady
        if found is None or found.from_s is None or found.to_s is None:
            return 0.0, FOREVER_S
        return found.from_s, found.to_s

    def _rate(self, name: str) -> Observed | None:
        if self.steady:
            return self._rate_over_ticks(name)
        requests = self.report.requests
        ended = requests.ok + sum(requests.failed.values())
        value = requests.ok / ended if name == SUCCESS and ended else getattr(self.report.throughput, name, None)
        if value is None or not self.blocks:
            return None if value is None else Observed(value)
        over_time = self._rate_over_ticks(name)
        if over_time is None or over_time.low is None or over_time.high is None:
            return Observed(value)
        return Observed(value, value - over_time.value + over_time.low, value - over_time.value + over_time.high)

    def _rate_over_ticks(self, name: str) -> Observed | None:
        """The mean over the complete ticks of the measured phases, and its interval from overlapping batch means."""
        rows = np.array([*self._ticks(name)])[1:-1]  # the first and the last are partly outside
        if len(rows) < _FEWEST_TICKS:
            return None
        above, below = rows[:, 0], rows[:, 1]  # a rate is events per s, a share events per event
        if not below.sum():
            return None
        value = float(above.sum() / below.sum())
        means = batch_means((above - value * below)[None, :])
        reach = student(0.975, means.freedom) * float(means.error[0]) / float(below.sum())
        if name == SUCCESS and not reach:  # none failed: as many may fail as one would not have noticed
            reach = 3 / float(below.sum())  # "rule of three" (Hanley & Lippman-Hand, JAMA 1983)
        return Observed(value, value - reach, value + reach)

    def _ticks(self, name: str) -> Iterator[tuple[float, float]]:
        """(events, seconds or all events) of each measured tick of the target, of the steady window if it is asked for."""
        start_s, end_s = self.window_s if self.steady else (0.0, FOREVER_S)
        key = {"requests_per_s": "ok", "output_tokens_per_s": "output", "goodput_per_s": "good", SUCCESS: "ok"}[name]
        for tick in ticks(self.run.path):
            parts = [each for each in tick.intervals if each.target == self.target and each.measured]
            if parts and start_s < tick.elapsed_s <= end_s:
                total = Slice()
                for part in parts:
                    total.add(part)
                events = float(total.count(key))
                yield events, float(total.count("ok") + total.failed) if name == SUCCESS else tick.seconds


class Sides(NamedTuple):
    """One pair's values of all runs."""

    pair: Pair
    base: list[Values]
    candidate: list[Values]

    @property
    def all(self) -> list[Values]:
        return [*self.base, *self.candidate]


def questions_of(
    base: Sequence[RunDirectory],
    candidate: Sequence[RunDirectory],
    *,
    margin: float,
    wanted: Sequence[Named] = (),
    steady: bool = False,
) -> tuple[list[Question], list[Reason]]:
    """The questions, with notes on what could not be asked. Raises PlanError and OutputError."""
    detailed = len(base) == len(candidate) == 1
    questions: list[Question] = []
    notes: list[Reason] = []
    for pair in pairs_of(base, candidate):
        sides = Sides(
            pair,
            [Values(run, pair.base, detailed=detailed, steady=steady) for run in base],
            [Values(run, pair.candidate, detailed=detailed, steady=steady) for run in candidate],
        )
        asked = wanted or [*_usual(sides)]
        for values in sides.all:
            values.load([named.metric for named in asked])
        questions += [_question(sides, named, margin) for named in asked]
        notes += _window_notes(sides)
    few = [f"{q.metric} {q.statistic} of {q.target}" for q in questions if not q.base or not q.candidate]
    if few:
        notes.append(Reason("too_few", f"a run has too few values, or none: {', '.join(few)}"))
    return questions, notes


def _usual(sides: Sides) -> Iterator[Named]:
    """What is compared unless something is named: medians and the furthest tail that every run supports, of the usual
    latencies; success; and what the load leaves to the server: throughput in a closed loop, goodput."""
    for metric in LATENCIES:
        count = min(values.count(metric) for values in sides.all)
        if count:
            yield Named(metric, "p50")
            tail = next((each for each in TAILS if count * (1 - QUANTILES[each]) >= BEYOND), None)
            if tail:
                yield Named(metric, tail)
    if all(values.run.report.run.load == "closed" for values in sides.all):
        yield from (Named(name, "mean") for name in RATES[:2])
    if all(values.report.throughput.goodput_per_s is not None for values in sides.all):
        yield Named("goodput_per_s", "mean")
    yield Named(SUCCESS, "mean")


def _question(sides: Sides, named: Named, margin: float) -> Question:
    found = [[values.observed(named) for values in side] for side in (sides.base, sides.candidate)]
    known = [[each for each in side if each is not None] for side in found]
    complete = all(len(side) == len(some) for side, some in zip(found, known, strict=True))
    return Question(
        target=sides.pair.label,
        metric=named.metric,
        statistic=named.statistic,
        base=known[0] if complete else (),
        candidate=known[1] if complete else (),
        margin=min(margin, SUCCESS_MARGIN) if named.metric == SUCCESS else margin,
        higher_is_better=METRICS[named.metric].higher_is_better if named.metric in METRICS else True,
        paired=_paired(sides, named) if complete else None,
    )


def _paired(sides: Sides, named: Named) -> tuple[float, float] | None:
    """Bounds from the blocks of single runs that were sent the same requests at the same times. Not for steady windows,
    which are not the same."""
    if len(sides.all) != 2:
        return None
    base, candidate = sides.all
    one, other = base.timed(named.metric), candidate.timed(named.metric)
    if one is None or other is None or one.tick_s != other.tick_s or base.steady:
        return None
    same = base.run.report.run.seed == candidate.run.report.run.seed
    return paired_bounds(one.ladder.blocks(), other.ladder.blocks(), named.statistic) if same else None


def _window_notes(sides: Sides) -> Iterator[Reason]:
    for values in sides.all:
        window = values.run.report.steady
        if values.steady and (window is None or window.state != "steady"):
            why = "its summary names no steady window" if window is None else f"{window.state}: {window.reason}"
            yield Reason("not_steady", f"{values.run.path.name}: {why}")
