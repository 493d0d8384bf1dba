"""The steady window: start-up and drain go, a run that is steady keeps its data, a trend is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_latency_lens.collectors.ladder import Blocks, Ladder
from llm_latency_lens.collectors.steady import steady, trend_of
from tests.support_samples import SECOND, ladder, sample


def blocks_of(
    process: str, runs: int, requests: int, seconds: int, *, slow_start_s: float = 0, slow_end_s: float = 0
) -> list[Blocks]:
    """Runs whose latencies are ten times longer for those that arrive in the first or last seconds."""
    made = sample(process, runs, requests, requests / seconds, seed=12)
    found = []
    for latency, end in zip(made.latency, made.end, strict=True):
        arrival = end - latency
        slow = (arrival < slow_start_s) | (arrival > arrival.max() - slow_end_s)
        latency = np.where(slow, 10 * latency, latency)
        found.append(ladder(latency, arrival + latency).blocks())
    return found


@pytest.mark.parametrize("process", ["iid", "ar 0.9", "mm1 0.5", "mm1 0.8", "bimodal"])
def test_a_stationary_run_keeps_its_data(process: str) -> None:
    """Plain MSER cuts a third of every loaded queue: under 1 % of steady runs may lose over a tenth."""
    windows = [(blocks.size, steady(blocks, 1.0)) for blocks in blocks_of(process, 40, 15_000, 225)]
    lost = [1 - (window.end - window.start) / size for size, window in windows]
    assert sum(each > 0.1 for each in lost) == 0
    assert sum(window.state == "drifting" for _, window in windows) <= 3


@pytest.mark.parametrize("process", ["iid", "ar 0.9", "bimodal"])
def test_a_slow_start_is_cut_off(process: str) -> None:
    """Cold caches for 5 s would otherwise be the p99 of a minute."""
    for blocks in blocks_of(process, 15, 20_000, 300, slow_start_s=5):
        window = steady(blocks, 1.0)
        assert 5 <= window.from_s <= 15
        assert "start-up" in window.reason
        p99 = blocks.cut(window.start, window.end).histogram().percentiles([99])
        assert p99 is not None
        stationary = sample(process, 1, 1, 1, seed=0).quantile(0.99)
        assert p99[0] / SECOND == pytest.approx(stationary, rel=0.12)  # its own sampling error included


def test_a_slow_end_is_cut_off() -> None:
    """The drain is the start-up's mirror image."""
    for blocks in blocks_of("iid", 15, 20_000, 300, slow_end_s=5):
        window = steady(blocks, 1.0)
        assert window.from_s == 0
        assert 285 <= window.to_s <= 300
        assert "drain" in window.reason


def test_a_short_run_says_so() -> None:
    """Ten seconds cannot show both a transient and what comes after it."""
    (blocks,) = blocks_of("iid", 1, 500, 10)
    window = steady(blocks, 1.0)
    assert window.state == "too_short"
    assert "20 are needed" in window.reason
    assert steady(Ladder().blocks(), 1.0).state == "too_short"


def test_any_shape_of_arrivals_has_a_window_and_finite_numbers() -> None:
    """Gaps, clumps and single values: an error here ends the collector, an infinite drift is no JSON number."""
    rng = np.random.default_rng(1)
    for case in range(400):
        starts = rng.uniform(0, 60, rng.integers(1, 6))
        lengths = rng.uniform(0.1, 30, len(starts))
        clumps = [rng.uniform(a, a + length, rng.integers(1, 200)) for a, length in zip(starts, lengths, strict=True)]
        end = np.sort(np.concatenate([*clumps, np.repeat(np.arange(21) + 0.5, case % 3)]))
        latency = np.exp(rng.normal(0, 2, len(end))) if case % 2 else np.where(end < 21, 0.01, 0.1)
        window = steady(ladder(latency, end).blocks(), 1.0)
        assert 0 <= window.start < window.end
        assert (window.drift_per_h is None) == (window.drift_ci95 is None)
        assert all(math.isfinite(each) for each in (*(window.drift_ci95 or ()), window.drift_per_h or 0.0))


def test_too_few_values_have_no_drift() -> None:
    """Twenty values in two clumps, years apart: a trend's interval would be infinite."""
    end = np.concatenate([np.arange(10) + 0.5, np.arange(10) + 990.5])
    window = steady(ladder(np.full(20, 0.1), end).blocks(), 1.0)
    assert (window.drift_per_h, window.drift_ci95) == (None, None)


def test_a_drift_is_measured_per_hour() -> None:
    """A server that leaks gets slower by an hour's soak: a number with its interval, and no cut that hides it."""
    made = sample("iid", 1, 36_000, 10, seed=5)
    latency = made.latency[0] * (1 + made.end[0] / 3_600)  # doubles in an hour
    window = steady(ladder(latency, made.end[0]).blocks(), 1.0)
    level = float(made.latency.mean()) * SECOND
    assert window.state == "drifting"
    assert window.drift_per_h == pytest.approx(level, rel=0.1)
    assert window.drift_ci95 is not None
    assert window.drift_ci95[0] < level < window.drift_ci95[1]
    assert window.to_s - window.from_s > 3_000


def test_correlation_is_not_taken_for_a_trend() -> None:
    """The plain Mann-Kendall test finds a trend in a third of these series; Hamed and Rao's must not."""
    random = np.random.default_rng(9)
    found = 0
    for _ in range(200):
        values = np.zeros(60)
        for i in range(1, 60):
            values[i] = 0.6 * values[i - 1] + random.standard_normal()
        found += trend_of(values, np.ones(60)).probability < 0.05
    assert found <= 40
