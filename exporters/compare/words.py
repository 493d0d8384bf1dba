"""A comparison in words: the sentence that comes first, and the cells of its table. Pure, no layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...collectors.compare import Compared, Comparison
from ...engine.metrics import METRICS
from .. import figures
from .questions import SUCCESS

HEADS: Final = ("target", "metric", "base", "candidate", "change", "95 % interval", "verdict")
CAPACITY: Final = "capacity"  # of sweeps: the highest load that meets all objectives
_RATE_LABELS: Final = {
    CAPACITY: "capacity",
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "goodput_per_s": "goodput/s",
    SUCCESS: "success share",
}


def sentence(compared: Compared) -> str:
    """`FAIL: 1 of 7 comparisons is worse: TTFT ms p99 of local +18.2 % (+9.1 % to +28.0 %).`"""
    total = len(compared.comparisons)
    worse = [each for each in compared.comparisons if each.verdict == "worse"]
    open_ = [each for each in compared.comparisons if each.verdict == "undecided"]
    if worse:
        verb = "is" if len(worse) == 1 else "are"
        first = max(worse, key=lambda each: abs(1 - (each.ratio or 1)))
        more = "the largest change: " if len(worse) > 1 else ""
        text = f"{len(worse)} of {total} comparisons {verb} worse: {more}{described(first)}."
    elif compared.state == "PASS":
        better = sum(each.verdict == "better" for each in compared.comparisons)
        text = f"nothing is worse: {_all(total)} within the margin of {compared.margin:.1%} or better"
        text += f", {better} better." if better else "."
    elif open_:
        text = f"nothing is shown to be worse, but {len(open_)} of {total} comparisons are not decided."
    else:
        text = "nothing is worse, but a run is INVALID: the client disturbed what it measured."
    return f"{compared.state}: {text}"


def _all(total: int) -> str:
    return "the comparison is" if total == 1 else f"all {total} comparisons are"


def described(comparison: Comparison) -> str:
    low, high = comparison.ci95
    interval = f" ({change(low)} to {change(high)})" if low is not None and high is not None else ""
    return f"{label(comparison)} of {comparison.target} {change(comparison.ratio)}{interval}"


def label(comparison: Comparison) -> str:
    return statistic_label(comparison.metric, comparison.statistic)


def statistic_label(metric: str, statistic: str) -> str:
    """`TTFT ms p99`, `requests/s`."""
    if metric in METRICS:
        return f"{figures.label(metric)} {statistic.replace('_', '.')}"
    return _RATE_LABELS[metric]


def change(ratio: float | None) -> str:
    return figures.MISSING if ratio is None else f"{ratio - 1:+.1%}".replace("%", " %")


def cells(comparison: Comparison) -> Sequence[str]:
    """A table's row under HEADS, the target included."""
    low, high = comparison.ci95
    none = low is None and high is None
    return (
        comparison.target,
        label(comparison),
        statistic_value(comparison.metric, comparison.base),
        statistic_value(comparison.metric, comparison.candidate),
        change(comparison.ratio),
        figures.MISSING if none else f"{change(low)} .. {change(high)}",
        comparison.verdict,
    )


def statistic_value(metric: str, number: float | None) -> str:
    """The number as people read it."""
    if metric == SUCCESS:
        return figures.share(number)
    return figures.value(number, metric) if metric in METRICS else figures.rate(number)


def sides(compared: Compared) -> str:
    """`base: run-a, run-b; candidate: run-c`."""
    return f"base: {', '.join(compared.base)}; candidate: {', '.join(compared.candidate)}"
