"""Simulated latencies whose true quantiles are known, by the second in which they end, for the statistics' tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_latency_lens.collectors.histogram import CELLS, indices
from llm_latency_lens.collectors.ladder import Ladder

SECOND: Final = 1e9
PROCESSES: Final = ("iid", "ar 0.5", "ar 0.9", "mm1 0.5", "mm1 0.8", "mm1 0.9", "bimodal")

Floats = npt.NDArray[np.float64]
_NORMAL: Final = NormalDist()


class Sample(NamedTuple):
    """Runs of one process: latencies and ends in s, shape (runs, requests), and the true quantile function in s."""

    latency: Floats
    end: Floats
    quantile: Callable[[float], float]


def sample(process: str, runs: int, requests: int, per_s: float, *, seed: int) -> Sample:
    """Stationary from the first request on. Poisson arrivals; `ar R` is a lognormal AR(1), `mm1 LOAD` a queue."""
    random = np.random.default_rng(seed)
    shape = (runs, requests)
    gaps = random.exponential(1 / per_s, shape)
    arrival = np.cumsum(gaps, axis=1)
    kind, _, parameter = process.partition(" ")
    if kind == "mm1":
        return _queue(random, gaps, arrival, per_s, float(parameter))
    normal = random.standard_normal(shape)
    if kind == "bimodal":  # 70 % answered from a cache
        latency = np.where(random.random(shape) < 0.3, 0.4 * np.exp(0.2 * normal), 0.05 * np.exp(0.3 * normal))
        return Sample(latency, arrival + latency, _bimodal)
    if kind == "ar":
        memory = float(parameter)
        steps = normal.T * math.sqrt(1 - memory * memory)
        steps[0] = normal[:, 0]
        for i in range(1, requests):
            steps[i] += memory * steps[i - 1]
        normal = steps.T
    latency = 0.05 * np.exp(0.5 * normal)
    return Sample(latency, arrival + latency, lambda q: 0.05 * math.exp(0.5 * _NORMAL.inv_cdf(q)))


def _queue(random: np.random.Generator, gaps: Floats, arrival: Floats, per_s: float, load: float) -> Sample:
    served_per_s = per_s / load
    service = random.exponential(1 / served_per_s, gaps.shape)
    first = random.exponential(1 / (served_per_s - per_s), len(gaps)) * (random.random(len(gaps)) < load)
    latency = waits(gaps, service, first) + service
    return Sample(latency, arrival + latency, lambda q: -math.log(1 - q) / (served_per_s - per_s))


def waits(gaps: Floats, service: Floats, first: Floats) -> Floats:
    """Of one server, by Lindley's recursion, as the distance of a random walk from its lowest point so far. `first` is
    the wait of each run's first request."""
    steps = np.zeros_like(gaps)
    steps[:, 1:] = service[:, :-1] - gaps[:, 1:]
    walk = np.cumsum(steps, axis=1)
    waited: Floats = np.maximum(walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0), first[:, None] + walk)
    return waited


def alike(
    process: str, requests: int, per_s: float, *, common: float, seed: int, factor: float = 1.0
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(latency, end) of a base and of a candidate that is `factor` times as slow, sent the same requests at the same times.

    `common` is the correlation of what else makes a request slow: `ar R`, the lognormal's own; `mm1 LOAD`, the work of a
    request (Gaussian copula), 1 for a server whose time follows from lengths alone.
    """
    random = np.random.default_rng(seed)
    gaps = np.tile(random.exponential(1 / per_s, (1, requests)), (2, 1))
    arrival = np.cumsum(gaps, axis=1)
    shared, own = random.standard_normal((1, requests)), random.standard_normal((2, requests))
    normal = math.sqrt(common) * shared + math.sqrt(1 - common) * own
    kind, _, parameter = process.partition(" ")
    factors = np.array([[1.0], [factor]])
    if kind == "mm1":
        beyond = 0.5 * np.vectorize(math.erfc)(normal / math.sqrt(2))
        service = -np.log(beyond) * float(parameter) / per_s * factors
        latency = waits(gaps, service, np.zeros(2)) + service
    else:
        memory = float(parameter) if kind == "ar" else 0.0
        for i in range(1, requests):
            normal[:, i] = memory * normal[:, i - 1] + math.sqrt(1 - memory * memory) * normal[:, i]
        latency = 0.05 * np.exp(0.5 * normal) * factors
    end = arrival + latency
    return (latency[0], end[0]), (latency[1], end[1])


def _bimodal(q: float) -> float:
    low, high = 1e-4, 10.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        slow = _NORMAL.cdf(math.log(middle / 0.4) / 0.2)
        fast = _NORMAL.cdf(math.log(middle / 0.05) / 0.3)
        low, high = (middle, high) if 0.3 * slow + 0.7 * fast < q else (low, middle)
    return low


def ticks(
    latency: Floats, end: Floats, *, tick_s: float = 1.0
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(tick, cells, counts) of one run for `Ladder.add`: what the collector's tick histograms hold."""
    keys, counts = np.unique(
        (end / tick_s).astype(np.int64) * CELLS + indices((latency * SECOND).astype(np.int64)), return_counts=True
    )
    tick, cells = keys // CELLS, keys % CELLS
    last = int(tick[-1]) + 1
    edges = np.searchsorted(tick, np.arange(last + 1))
    for each in range(last):
        part = slice(edges[each], edges[each + 1])
        yield each, cells[part], counts[part]


def ladder(latency: Floats, end: Floats, *, tick_s: float = 1.0) -> Ladder:
    """One run through the real ladder, tick by tick."""
    made = Ladder()
    for tick, cells, counts in ticks(latency, end, tick_s=tick_s):
        made.add(tick, cells, counts)
    return made
