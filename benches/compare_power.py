"""How often `lens compare` raises a false alarm, and what it finds: simulated runs with known differences.

    python -m benches.compare_power [--pairs 200] [--only alarms,runs,single,paired]

Every run is simulated request by request; its statistics are those of its histogram, its blocks go through the real
ladder. Runs of one system differ by a factor of 2 % (standard deviation) beside what their requests do.

    alarms  pairs of equal systems (5 against 5 runs, and 1 against 1) of which anything is called worse or better
    runs    power for +5 % at p50 (margin 5 %) and +15 % at p99 (margin 15 %) at the number of runs that a pilot of 5
            recommends, the mean over the pilots
    single  power for +10 % at p50 with a single pair of runs of 60 s
    paired  the same, and false alarms, for two runs of one seed, by how much else of a request's time they have in common
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import numpy as np

from llm_latency_lens.collectors.compare import (
    Compared,
    Observed,
    Question,
    compare,
    effect_of,
    runs_needed,
)
from llm_latency_lens.collectors.confidence import confidence
from llm_latency_lens.collectors.paired import paired_bounds
from tests.support_samples import SECOND, Floats, alike, ladder, sample

PROCESSES: Final = ("iid", "ar 0.9", "mm1 0.5", "mm1 0.8", "bimodal")
REQUESTS: Final = 3_000
SECONDS: Final = 60
BETWEEN: Final = 0.02  # standard deviation of the factor by which runs of one system differ
STATISTICS: Final = ("p50", "p99")
RUNS: Final = 5
MARGINS: Final = dict.fromkeys(STATISTICS, 0.05)
COMMON: Final = (0.0, 0.5, 0.9, 1.0)

Sides = dict[str, list[Observed]]


def observed(latency: Floats, end: Floats) -> dict[str, Observed]:
    """The statistics of one run with the intervals of its blocks."""
    intervals = confidence(ladder(latency, end).blocks()).intervals
    return {
        name: Observed(
            intervals[name].value / SECOND,
            None if (low := intervals[name].low) is None else low / SECOND,
            None if (high := intervals[name].high) is None else high / SECOND,
        )
        for name in STATISTICS
    }


def runs_of(process: str, count: int, *, seed: int, factor: float = 1.0, between: float = 0.0) -> Iterator[Sides]:
    """Statistics of `count` runs, endlessly; `factor` times as slow as the process, requests arriving as before."""
    random = np.random.default_rng(seed)
    while True:
        made = sample(process, count, REQUESTS, REQUESTS / SECONDS, seed=int(random.integers(1 << 40)))
        scale = factor * np.exp(between * random.standard_normal(count))
        found: Sides = {name: [] for name in STATISTICS}
        for latency, end, by in zip(made.latency, made.end, scale, strict=True):
            for name, each in observed(latency * by, end - latency + latency * by).items():
                found[name].append(each)
        yield found


def quick_runs(process: str, *, seed: int, count: int, factor: float = 1.0) -> dict[str, list[Observed]]:
    """Statistics of `count` runs without blocks: all that several runs need, and 50 times as fast."""
    made = sample(process, count, REQUESTS, REQUESTS / SECONDS, seed=seed)
    scale = factor * np.exp(BETWEEN * np.random.default_rng(seed + 1).standard_normal(count))
    rows = np.quantile(made.latency, (0.5, 0.99), axis=1) * scale
    return {name: [Observed(float(v)) for v in row] for name, row in zip(STATISTICS, rows, strict=True)}


def asked(base: Sides, candidate: Sides, margins: dict[str, float]) -> Compared:
    questions = [Question("t", "ttft_ms", name, base[name], candidate[name], margins[name]) for name in STATISTICS]
    one, other = ([f"run-{k}" for k in range(len(side["p50"]))] for side in (base, candidate))
    return compare(questions, base=one, candidate=other, margin=0.05)


def alarmed(base: Sides, candidate: Sides) -> bool:
    compared = asked(base, candidate, MARGINS)
    return any(each.verdict in ("worse", "better") for each in compared.comparisons)


def alarms(process: str, pairs: int) -> str:
    several = sum(
        alarmed(
            quick_runs(process, seed=10_000 + 2 * k, count=RUNS),
            quick_runs(process, seed=90_000 + 2 * k, count=RUNS),
        )
        for k in range(pairs)
    )
    ones, others = runs_of(process, 1, seed=1), runs_of(process, 1, seed=2)
    single = sum(alarmed(next(ones), next(others)) for _ in range(pairs))
    return f"{process:8} false alarms: {RUNS} runs {several / pairs:5.1%}   single pairs {single / pairs:5.1%}"


def recommended(process: str, pilots: int) -> list[str]:
    lines = []
    for name, factor, margin in (("p50", 1.05, 0.05), ("p99", 1.15, 0.15)):
        numbers, found, tried = [], 0, 0
        for k in range(pilots):
            base = quick_runs(process, seed=10_000 + 2 * k, count=RUNS)
            candidate = quick_runs(process, seed=90_000 + 2 * k, count=RUNS, factor=factor)
            effect = effect_of(base[name], candidate[name])
            assert effect is not None
            n = runs_needed(effect, margin=margin, comparisons=len(STATISTICS))
            if n is None:
                continue
            numbers.append(n)
            tried += 1
            compared = asked(
                quick_runs(process, seed=500_000 + 2 * k, count=n),
                quick_runs(process, seed=900_000 + 2 * k, count=n, factor=factor),
                {"p50": 0.05, "p99": 0.15},
            )
            found += next(each.verdict == "worse" for each in compared.comparisons if each.statistic == name)
        lines.append(
            f"{process:8} +{factor - 1:.0%} {name}: runs recommended {np.median(numbers):3.0f} (5 to 95 % of the pilots: "
            f"{np.quantile(numbers, 0.05):.0f} to {np.quantile(numbers, 0.95):.0f})   found {found / tried:5.1%}"
        )
    return lines


def single(process: str, pairs: int) -> str:
    bases, candidates = runs_of(process, 1, seed=3), runs_of(process, 1, seed=4, factor=1.1)
    found, width = 0, []
    for _ in range(pairs):
        compared = asked(next(bases), next(candidates), MARGINS)
        p50 = compared.comparisons[0]
        found += p50.verdict == "worse"
        low, high = p50.ci95
        width.append(np.inf if low is None or high is None else (high - low) / 2)
    return (
        f"{process:8} +10 % p50, one pair of {SECONDS} s: found {found / pairs:5.1%}, half width {np.median(width):.1%}"
    )


def paired(process: str, common: float, pairs: int) -> str:
    """False alarms at p50 and p99, and the power for +10 % at p50, with and without pairing."""
    alarms, found, unpaired, width = 0, 0, 0, []
    for k in range(pairs):
        for factor in (1.0, 1.1):
            runs = alike(process, REQUESTS, REQUESTS / SECONDS, common=common, seed=k, factor=factor)
            blocks = [ladder(*run).blocks() for run in runs]
            sides = [observed(*run) for run in runs]
            questions = [
                Question("t", "ttft_ms", name, [sides[0][name]], [sides[1][name]], 0.05, paired=bounds)
                for name in STATISTICS
                for bounds in (paired_bounds(blocks[0], blocks[1], name),)
            ]
            compared = compare(questions, base=["a"], candidate=["b"], margin=0.05)
            p50 = compared.comparisons[0]
            if factor == 1.0:
                alarms += any(each.verdict in ("worse", "better") for each in compared.comparisons)
                continue
            found += p50.verdict == "worse"
            unpaired += (
                asked(*({n: [v] for n, v in side.items()} for side in sides), MARGINS).comparisons[0].verdict == "worse"
            )
            low, high = p50.ci95
            width.append(np.inf if low is None or high is None else (high - low) / 2)
    return (
        f"{process:8} one seed, {common:4.0%} in common: false alarms {alarms / pairs:5.1%}   +10 % p50 found "
        f"{found / pairs:5.1%} (by its blocks alone {unpaired / pairs:5.1%}), half width {np.median(width):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--only", default="alarms,runs,single,paired")
    parser.add_argument("--processes", default=",".join(PROCESSES))
    given = parser.parse_args()
    for process in given.processes.split(","):
        if "alarms" in given.only:
            print(alarms(process, given.pairs), flush=True)
        if "runs" in given.only:
            print(*recommended(process, given.pairs), sep="\n", flush=True)
        if "single" in given.only:
            print(single(process, given.pairs), flush=True)
        if "paired" in given.only and process != "bimodal":
            print(*(paired(process, common, given.pairs) for common in COMMON), sep="\n", flush=True)


if __name__ == "__main__":
    main()
