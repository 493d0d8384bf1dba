"""Did it get worse? Ratios of statistics of two sets of runs with 95 % intervals and verdicts. No clock, no file.

Where a side has several runs, the run is the unit of replication: requests of one run share its start-up, placement and
caches, so that the spread between runs is the error that counts (Mytkowicz et al., ASPLOS 2009). One value per run, on
the log scale; Welch's t interval (1947) of the difference of the means is that of the ratio. A bootstrap of 5 values
would cover less: it underestimates their spread by a tenth and knows no degrees of freedom.

With one run on each side, the intervals of the blocks within the runs (collectors.confidence) are joined: MOVER (Zou &
Donner, Statistics in Medicine 2008) keeps their asymmetry. Runs of one seed are compared block by block instead
(collectors.paired). How runs of the same system differ stays unknown then.

    significant  p below the level of Holm's step-down (1979) over all comparisons: among runs without a difference at
                 most 5 % of the reports name one
    same         the 95 % interval lies within the margin, 1/(1 + m) to 1 + m, significant or not
    worse        significant, in the direction that is worse for the metric, and not the same
    undecided    neither: more runs are needed. How many is that number at which a difference as large as the margin
                 would be found with probability 0.9

`benches/compare_power.py` prints the false alarms and the power.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from .histogram import RESOLUTION
from .snapshot import SCHEMA, Reason

Verdict = Literal["better", "worse", "same", "undecided"]
State = Literal["PASS", "FAIL", "UNDECIDED"]

LEVEL: Final = 0.05
POWER: Final = 0.9
RUNS_MAX: Final = 1_000  # more are not recommended: the margin is too small for what varies
_Z: Final = NormalDist().inv_cdf(1 - LEVEL / 2)
# Two equal runs may differ by a cell of their histograms: no statistic is known better.
_VARIANCE_MIN: Final = RESOLUTION * RESOLUTION / 12
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


class Observed(NamedTuple):
    """A statistic of one run in the metric's unit. `low` and `high`: its 95 % interval from blocks within the run, None
    where that is unknown; only used where both sides have a single run."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One statistic to compare. An empty side means that its runs cannot give the statistic."""

    target: str
    metric: str
    statistic: str
    base: Sequence[Observed]
    candidate: Sequence[Observed]
    margin: float  # the relative difference that does not matter
    higher_is_better: bool = False
    paired: tuple[float, float] | None = None  # of single runs of one seed: bounds of the logarithm of candidate/base


class Comparison(msgspec.Struct, kw_only=True):
    """`base` and `candidate` are geometric means over the runs, in the metric's unit; `ratio` is candidate/base."""

    target: str
    metric: str
    statistic: str
    base: float | None
    candidate: float | None
    ratio: float | None
    ci95: tuple[float | None, float | None]
    verdict: Verdict


class Compared(msgspec.Struct, kw_only=True):
    """What `lens compare --json` prints."""

    schema: int = SCHEMA
    base: list[str]
    candidate: list[str]
    margin: float
    comparisons: list[Comparison]
    state: State
    notes: list[Reason]


class Effect(NamedTuple):
    """Logarithm of a ratio with its 95 % interval; `probability` of one as far from 0 if there is no difference."""

    value: float
    low: float
    high: float
    probability: float
    run_variance: float  # of one run's logarithm, both sides pooled
    freedom: float  # degrees of freedom of that variance


def compare(
    questions: Sequence[Question],
    *,
    base: Sequence[str],
    candidate: Sequence[str],
    margin: float,
    notes: Sequence[Reason] = (),
) -> Compared:
    """Answers all questions together, as the correction for their number needs. `base` and `candidate` name the runs."""
    effects = [effect_of(question.base, question.candidate, question.paired) for question in questions]
    significant = holm([effect.probability if effect else 1.0 for effect in effects])
    comparisons = [_comparison(*each) for each in zip(questions, effects, significant, strict=True)]
    return Compared(
        base=list(base),
        candidate=list(candidate),
        margin=margin,
        comparisons=comparisons,
        state=state_of(comparisons),
        notes=[*_notes(questions, effects, comparisons, len(base), len(candidate)), *notes],
    )


def state_of(comparisons: Sequence[Comparison]) -> State:
    """FAIL if anything is worse, PASS if everything is shown not to be."""
    verdicts = {each.verdict for each in comparisons}
    return "FAIL" if "worse" in verdicts else "UNDECIDED" if "undecided" in verdicts or not verdicts else "PASS"


def effect_of(
    base: Sequence[Observed], candidate: Sequence[Observed], paired: tuple[float, float] | None = None
) -> Effect | None:
    """The ratio candidate/base of a statistic; None if a side is empty or a value is not above 0. See Question."""
    if not base or not candidate or min(each.value for each in (*base, *candidate)) <= 0:
        return None
    if len(base) == len(candidate) == 1:
        return _within_runs(base[0], candidate[0], paired)
    return _between_runs([math.log(each.value) for each in base], [math.log(each.value) for each in candidate])


def _between_runs(base: Sequence[float], candidate: Sequence[float]) -> Effect:
    """Welch's interval of the difference of two means."""
    sides = [np.asarray(base), np.asarray(candidate)]
    known = [(max(float(side.var(ddof=1)), _VARIANCE_MIN), len(side) - 1) for side in sides if len(side) > 1]
    # A side with a single run has no spread of its own: it is taken to vary like the other.
    parts = [known[min(i, len(known) - 1)][0] / len(side) for i, side in enumerate(sides)]
    variance = sum(parts)
    freedom = (
        variance**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        if len(known) == 2
        else float(known[0][1])
    )
    value = float(sides[1].mean() - sides[0].mean())
    error = math.sqrt(variance)
    reach = t_quantile(1 - LEVEL / 2, freedom) * error
    pooled = sum(spread * n for spread, n in known) / sum(n for _, n in known)
    return Effect(value, value - reach, value + reach, t_beyond(value / error, freedom), pooled, freedom)


def _within_runs(base: Observed, candidate: Observed, paired: tuple[float, float] | None) -> Effect:
    """MOVER's interval of the ratio of two statistics with intervals of their own.

    `paired` takes its place only where there is such an interval: a run that is too short for one of its own is too
    short for a difference (M/M/1 at load 0.8, p99 of 60 s: 40 % false alarms).
    """
    value = math.log(candidate.value / base.value)
    below, above = _reaches(candidate), _reaches(base)
    down, up = math.hypot(below[0], above[1]), math.hypot(below[1], above[0])
    if paired is not None and math.isfinite(down + up):
        least = _Z * math.sqrt(2 * _VARIANCE_MIN)
        down, up = max(value - paired[0], least), max(paired[1] - value, least)
    error = (down if value > 0 else up) / _Z
    probability = 1.0 if math.isinf(error) else math.erfc(abs(value) / error / math.sqrt(2))
    variance = ((down + up) / 2 / _Z) ** 2 / 2
    return Effect(value, value - down, value + up, probability, variance, math.inf)


def _reaches(run: Observed) -> tuple[float, float]:
    """How far the interval reaches below and above the value, as logarithms; infinite where there is no bound."""
    least = _Z * math.sqrt(_VARIANCE_MIN)
    below = math.log(run.value / run.low) if run.low is not None and run.low > 0 else math.inf
    above = math.log(run.high / run.value) if run.high is not None else math.inf
    return max(below, least), max(above, least)


def holm(probabilities: Sequence[float]) -> list[bool]:
    """Which of the probabilities are significant together at 5 %: Holm's step-down procedure (Scand. J. Stat. 1979)."""
    found = [False] * len(probabilities)
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    for rank, index in enumerate(order):
        if probabilities[index] > LEVEL / (len(order) - rank):
            break
        found[index] = True
    return found


def _comparison(question: Question, effect: Effect | None, significant: bool) -> Comparison:
    comparison = Comparison(
        target=question.target,
        metric=question.metric,
        statistic=question.statistic,
        base=centre(question.base),
        candidate=centre(question.candidate),
        ratio=None,
        ci95=(None, None),
        verdict="undecided",
    )
    if effect is not None:
        comparison.ratio = math.exp(effect.value)
        comparison.ci95 = (_bound(effect.low), _bound(effect.high))
        comparison.verdict = _verdict(effect, significant, math.log1p(question.margin), question.higher_is_better)
    return comparison


def centre(runs: Sequence[Observed]) -> float | None:
    """The geometric mean of the runs' values; 0 if one is not above 0, None without any."""
    values = [each.value for each in runs]
    return None if not values else math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def _bound(logarithm: float) -> float | None:
    return math.exp(logarithm) if abs(logarithm) < 50 else None


def _verdict(effect: Effect, significant: bool, margin: float, higher_is_better: bool) -> Verdict:
    if -margin <= effect.low and effect.high <= margin:
        return "same"
    if not significant:
        return "undecided"
    return "better" if (effect.value > 0) == higher_is_better else "worse"


def runs_needed(effect: Effect, *, margin: float, comparisons: int) -> int | None:
    """Runs of each side at which a difference of `margin` is significant with probability 0.9, among so many
    comparisons; at least 2, None above RUNS_MAX.

    The spread between few runs is known badly, and half of all estimates are too low: the variance is the upper bound
    that it stays below in three of four cases, so that the power is reached on average over the estimates.
    """
    variance = effect.run_variance / _chi2_share(0.25, effect.freedom)
    level = 1 - LEVEL / comparisons / 2
    difference = math.log1p(margin)

    def found(n: int) -> bool:
        reach = t_quantile(level, 2 * n - 2) + t_quantile(POWER, 2 * n - 2)
        return reach * math.sqrt(2 * variance / n) <= difference

    n = 2 + bisect_left(range(2, RUNS_MAX + 1), True, key=found)
    return n if n <= RUNS_MAX else None


def _chi2_share(probability: float, freedom: float) -> float:
    """The quantile of chi squared over its degrees of freedom, by Wilson and Hilferty (PNAS 1931)."""
    if math.isinf(freedom):
        return 1.0
    part = 2 / (9 * freedom)
    return float((1 - part + NormalDist().inv_cdf(probability) * math.sqrt(part)) ** 3)


def t_beyond(t: float, freedom: float) -> float:
    """The probability that Student's t is as far from 0 as this, on either side.

    The density is integrated over the angle atan(t / sqrt(freedom)), where it is a power of the cosine.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    heights = np.cos(angle * (_NODES + 1) / 2) ** (freedom - 1)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - scale * angle * float(_WEIGHTS @ heights))


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile for a probability above 0.5, exact also for the 1 or 2 degrees of freedom of few runs."""
    low, high = 0.0, 1.0
    beyond = 2 * (1 - probability)
    while t_beyond(high, freedom) > beyond:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if t_beyond(middle, freedom) > beyond else (low, middle)
    return high


def _notes(
    questions: Sequence[Question],
    effects: Sequence[Effect | None],
    comparisons: Sequence[Comparison],
    base: int,
    candidate: int,
) -> list[Reason]:
    if base == candidate == 1 and any(question.paired for question in questions):
        unit = (
            "one run of the same seed on each side: what its arrivals and lengths do to both cancels block by block. How "
            "runs of the same system differ is not covered; several runs on each side cover it"
        )
    elif base == candidate == 1:
        unit = (
            "one run on each side: the intervals come from blocks within the runs. They do not cover how runs of the same "
            "system differ; several runs on each side do"
        )
    else:
        unit = (
            f"the run is the unit of replication: {base} against {candidate} runs, Welch's t interval of the logarithms"
        )
    count = len(questions)
    notes = [
        Reason("replication", unit),
        Reason("correction", f"verdicts are corrected by Holm's method for {count} comparisons, intervals are not"),
    ]
    undecided = [
        (question, effect)
        for question, effect, comparison in zip(questions, effects, comparisons, strict=True)
        if effect is not None and comparison.verdict == "undecided"
    ]
    short = [_name(question) for question, effect in undecided if math.isinf(effect.run_variance)]
    if short:
        notes.append(Reason("too_short", f"the runs are too short for an interval: {', '.join(short)}"))
    needs = [_need(question, effect, count, max(base, candidate)) for question, effect in undecided]
    if any(needs):
        notes.append(Reason("needs_runs", f"to decide, each side needs {', '.join(filter(None, needs))}"))
    return notes


def _need(question: Question, effect: Effect, comparisons: int, have: int) -> str:
    """`about 12 runs for ttft_ms p50 of local (5.0%)`; empty where there is no interval to extrapolate."""
    if math.isinf(effect.run_variance):
        return ""
    runs = runs_needed(effect, margin=question.margin, comparisons=comparisons)
    about = f"over {RUNS_MAX:,}" if runs is None else f"about {max(runs, have + 1)}"
    return f"{about} runs for {_name(question)} (to find {question.margin:.1%})"


def _name(question: Question) -> str:
    return f"{question.metric} {question.statistic} of {question.target}"
