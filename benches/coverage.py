"""Whether the intervals, the stopping rule and the steady window keep what they promise, on processes of known truth.

    python -m benches.coverage [--runs 1000] [--only coverage,until,steady,cost]

Every run goes through the real ladder, second by second. Printed per process, requests and quantile:

    given      runs with both bounds; the others have none above, as n_eff x (1 - q) is too small
    covers     of those, how many contain the truth; 95 % is nominal
    below      the truth lies below the interval: a false FAIL at the bound, nominal 2.5 % (of all runs)
    above      the truth lies above it: a false PASS at the bound, nominal 2.5 % (of all runs)
    width      mean width over that of an oracle: the range of 95 % of the estimates over all runs
    n_eff      median
"""

from __future__ import annotations

import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Final

import numpy as np

from llm_latency_lens.collectors.confidence import QUANTILES, confidence
from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.ladder import Ladder
from llm_latency_lens.collectors.steady import steady
from llm_latency_lens.collectors.until import Goal
from tests.support_samples import PROCESSES, SECOND, Floats, ladder, sample, ticks

SIZES: Final = ((3_000, 60), (20_000, 300))  # requests, over s
SHOWN: Final = ("mean", "p50", "p95", "p99")
GOALS: Final = (("iid", "p99", 0.05), ("ar 0.9", "p95", 0.05), ("mm1 0.5", "p50", 0.05), ("bimodal", "p99", 0.03))
BATCH: Final = 100  # runs simulated at a time: 20,000 requests each are 16 MB an array


def coverage(process: str, requests: int, seconds: int, runs: int) -> list[str]:
    """A line per statistic."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in SHOWN}
    truth: dict[str, float] = {}
    for start in range(0, runs, BATCH):
        made = sample(process, min(BATCH, runs - start), requests, requests / seconds, seed=start)
        truth |= {name: made.quantile(QUANTILES[name]) for name in SHOWN if name in QUANTILES}
        for latency, end in zip(made.latency, made.end, strict=True):
            intervals = confidence(ladder(latency, end).blocks()).intervals
            for name in SHOWN:
                each = intervals[name]
                low = math.nan if each.low is None else each.low / SECOND
                high = math.nan if each.high is None else each.high / SECOND
                found[name].append((each.value / SECOND, low, high, each.n_eff))
    truth["mean"] = float(np.mean([made.quantile((k + 0.5) / 20_000) for k in range(20_000)]))
    return [_line(process, requests, name, truth[name], np.array(rows)) for name, rows in found.items()]


def _line(process: str, requests: int, name: str, truth: float, rows: Floats) -> str:
    values, low, high, n_eff = rows.T
    given = np.isfinite(low) & np.isfinite(high)
    below, above = np.mean(low > truth), np.mean(high < truth)
    head = f"{process:8} {requests:6} {name:5} given {given.mean():5.1%}"
    tail = f"below {below:5.1%}  above {above:5.1%}  n_eff {np.median(n_eff):8.0f}"
    if given.mean() < 0.005:
        return f"{head}  covers    -   width    -  {tail}"
    covers = np.mean((low <= truth) & (truth <= high), where=given)
    oracle = np.diff(np.quantile(values, (0.025, 0.975)))[0]
    width = np.mean(high - low, where=given) / oracle
    mark = " " if 0.92 <= covers <= 0.97 and width <= 1.3 else "*"
    return f"{head}  covers {covers:5.1%} width {width:4.2f} {tail} {mark}"


def until(process: str, statistic: str, share: float, runs: int) -> list[str]:
    """How many requests a goal costs, against the fewest at which 95 % of the estimates are within the share."""
    q = QUANTILES[statistic]
    estimates = [np.quantile(sample(process, BATCH, 20_000, 100, seed=each).latency, q, axis=1) for each in range(10)]
    truth = sample(process, 1, 1, 100, seed=0).quantile(q)
    spread = float(np.std(estimates)) / truth
    fewest = 20_000 * (1.96 * spread / share) ** 2
    per_s = fewest / 200
    spent, covered, close, missed = [], [], [], 0
    for start in range(0, runs, 20):
        made = sample(process, min(20, runs - start), int(2.5 * fewest), per_s, seed=1000 + start)
        truth = made.quantile(q)  # a queue's latency scales with its rate
        for latency, end in zip(made.latency, made.end, strict=True):
            growing, goal, requests = Ladder(), Goal(share), 0
            for tick, cells, counts in ticks(latency, end):
                growing.add(tick, cells, counts)
                requests += int(counts.sum())
                if tick < 60 or tick % 4:  # far from any goal; every fourth look, for the bench's own time
                    continue
                interval = confidence(growing.blocks()).intervals[statistic]
                if goal.look(interval, requests):
                    assert interval.low is not None
                    assert interval.high is not None
                    covered.append(interval.low / SECOND <= truth <= interval.high / SECOND)
                    close.append(abs(interval.value / SECOND / truth - 1) <= share)
                    break
            else:
                missed += 1
            spent.append(requests / fewest)
    return [
        f"{process:8} {statistic:4} +-{share:.0%}  fewest {fewest:8.0f}  spent {np.mean(spent):4.2f} (95 % of runs up to "
        f"{np.quantile(spent, 0.95):4.2f})  covers {np.mean(covered):5.1%}  truth within the share {np.mean(close):5.1%}  "
        f"width reached {1 - missed / runs:5.1%}"
    ]


def stationary(process: str, requests: int, seconds: int, runs: int) -> list[str]:
    """What the steady window loses of stationary runs, and what is left of a start-up ten times slower for 5 s."""
    made = sample(process, runs, requests, requests / seconds, seed=77)
    lost, drifts, left = [], [], []
    for latency, end in zip(made.latency, made.end, strict=True):
        blocks = ladder(latency, end).blocks()
        window = steady(blocks, 1.0)
        lost.append(1 - (window.end - window.start) / blocks.size)
        drifts.append(window.state == "drifting")
        arrival = end - latency
        slow = np.where(arrival < 5, 10 * latency, latency)
        blocks = ladder(slow, arrival + slow).blocks()
        window = steady(blocks, 1.0)
        values = blocks.cut(window.start, window.end).histogram().percentiles([99])
        assert values is not None
        left.append(values[0] / SECOND / float(np.quantile(latency[arrival >= 5], 0.99)) - 1)
    errors = np.abs(left)
    return [
        f"{process:8} {requests:6} stationary: over 10 % lost in {np.mean(np.array(lost) > 0.1):5.1%}, drifting "
        f"{np.mean(drifts):5.1%}   burst: p99 within 5 % in {np.mean(errors <= 0.05):5.1%}, median error "
        f"{np.median(errors):6.2%}"
    ]


def cost(targets: int = 5, metrics: int = 15, per_tick: int = 80, gaps_per_tick: int = 4_000) -> list[str]:
    """CPU and memory of the ladders of 5 targets and 15 metrics, one of them the gaps, at 20k events/s."""
    random = np.random.default_rng(1)
    made = [Ladder() for _ in range(targets * metrics)]
    spent, merges = 0.0, 0.0
    lasting = 2_100
    sizes = [gaps_per_tick if index % metrics == 0 else per_tick for index in range(len(made))]
    pool = {size: [_histogram(random, size) for _ in range(20)] for size in set(sizes)}
    for tick in range(lasting):
        start = time.process_time()
        for each, size in zip(made, sizes, strict=True):
            each.add_histogram(tick, pool[size][tick % 20])
        took = time.process_time() - start
        spent, merges = spent + took, max(merges, took)
    start = time.process_time()
    for each in made:
        confidence(each.blocks())
    report = time.process_time() - start
    memory = sum(each.memory_bytes for each in made) / 1e6
    return [
        f"{len(made)} ladders, {lasting} ticks: {spent / lasting * 1e3:.1f} ms a tick of 1 s ({spent / lasting:.2%} CPU), "
        f"worst tick {merges * 1e3:.0f} ms, all intervals {report * 1e3:.0f} ms, {memory:.0f} MB"
    ]


def _histogram(random: np.random.Generator, size: int) -> Histogram:
    histogram = Histogram()
    histogram.record((5e7 * np.exp(0.5 * random.standard_normal(size))).astype(np.int64))
    return histogram


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--runs", type=int, default=1_000)
    options.add_argument("--only", default="coverage,until,steady,cost")
    given = options.parse_args()
    chosen = given.only.split(",")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = []
        if "coverage" in chosen:
            jobs += [pool.submit(coverage, name, *size, given.runs) for size in SIZES for name in PROCESSES]
        if "until" in chosen:
            jobs += [pool.submit(until, *goal, max(20, given.runs // 10)) for goal in GOALS]
        if "steady" in chosen:
            jobs += [pool.submit(stationary, name, *size, given.runs // 5) for size in SIZES for name in PROCESSES]
        if "cost" in chosen:
            jobs.append(pool.submit(cost))
        for job in jobs:
            print(*job.result(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
