"""Intervals: they cover the truth where they are given, and are missing where they could not."""

from __future__ import annotations

import numpy as np
import pytest

from llm_latency_lens.collectors.confidence import QUANTILES, Confidence, confidence, proportion, student
from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.ladder import Blocks, Ladder
from llm_latency_lens.collectors.until import Goal, judge
from tests.support_samples import SECOND, ladder, sample

RUNS = 120


def intervals(process: str, requests: int, seconds: int, runs: int = RUNS) -> tuple[list[Confidence], dict[str, float]]:
    """The confidence of each run, and the true quantiles in ns."""
    made = sample(process, runs, requests, requests / seconds, seed=2026)
    found = [confidence(ladder(*run).blocks()) for run in zip(made.latency, made.end, strict=True)]
    return found, {name: made.quantile(q) * SECOND for name, q in QUANTILES.items()}


@pytest.mark.parametrize("process", ["iid", "ar 0.5", "ar 0.9", "mm1 0.5", "mm1 0.8", "bimodal"])
def test_an_interval_covers_the_truth_in_95_of_100_runs(process: str) -> None:
    """The number that people decide by. Fixed seed; benches/coverage.py has 1,000 runs of each, and the widths."""
    found, truth = intervals(process, 3_000, 60)
    for name in ("p50", "p95"):
        both = [each.intervals[name] for each in found if each.intervals[name].half_width is not None]
        if len(both) < RUNS // 2:
            continue  # most runs say that they cannot tell
        hits = sum(low <= truth[name] <= high for _, low, high, *_ in both if low is not None and high is not None)
        assert hits / len(both) >= 0.89, (process, name, hits, len(both))


def test_correlated_requests_count_for_less() -> None:
    """AR(1) with 0.9 under a normal copula: 3,000 requests are worth about 250 for the median."""
    found, _ = intervals("ar 0.9", 3_000, 60, 40)
    sizes = [each.n_eff for each in found if each.n_eff is not None]
    assert 200 < float(np.median(sizes)) < 320


def test_independent_requests_count_fully() -> None:
    """A run must not be called correlated by chance alone."""
    found, _ = intervals("iid", 3_000, 60, 40)
    sizes = [each.n_eff for each in found if each.n_eff is not None]
    assert float(np.median(sizes)) > 2_500
    assert max(sizes) <= 3_000


def test_a_tail_that_was_hardly_seen_has_no_upper_bound() -> None:
    """p99 of a loaded queue over a minute rests on a handful of congestions: any bound would be invented."""
    found, truth = intervals("mm1 0.9", 3_000, 60, 60)
    p99 = [each.intervals["p99"] for each in found]
    assert all(each.high is None for each in p99)
    assert sum(each.low is not None and each.low <= truth["p99"] for each in p99) >= 48
    assert not any(each.supports_p99_9 for each in found)


def test_p99_9_is_supported_by_enough_independent_requests() -> None:
    """3,688 independent requests, not 3,688 requests."""
    independent, _ = intervals("iid", 20_000, 100, 3)
    correlated, _ = intervals("ar 0.9", 20_000, 100, 3)
    assert all(each.supports_p99_9 for each in independent)
    assert not any(each.supports_p99_9 for each in correlated)


def test_too_few_blocks_give_no_interval() -> None:
    """Two ticks have no variance to speak of, and an empty ladder has nothing at all."""
    assert confidence(Ladder().blocks()) == Confidence(0, None, {})
    short = Ladder()
    for tick in range(2):
        short.add(tick, np.array([5_000]), np.array([100]))
    assert confidence(short.blocks()).n_eff is None


def test_a_constant_is_as_sure_as_its_cell_is_wide() -> None:
    """A server that paces by a timer puts all gaps into one cell: no division by its variance of 0."""
    constant = Ladder()
    for tick in range(60):
        histogram = Histogram()
        histogram.record(np.full(50, 20_000_000, np.int64))
        constant.add_histogram(tick, histogram)
    found = confidence(constant.blocks())
    assert found.n_eff == 3_000
    for each in found.intervals.values():
        if each.low is not None and each.high is not None:
            assert each.low == pytest.approx(20_000_000, rel=1e-3)
            assert each.high == pytest.approx(20_000_000, rel=1e-3)


def outcomes(failed: list[int], total: int) -> Blocks:
    """A ladder of outcomes: cell 0 is ok, cell 1 failed."""
    made = Ladder()
    for tick, bad in enumerate(failed):
        counts = {0: total - bad, 1: bad}
        cells = [cell for cell, count in counts.items() if count]
        made.add(tick, np.array(cells), np.array([counts[cell] for cell in cells]))
    return made.blocks()


def test_an_error_rate_covers_its_truth_and_bursts_widen_it() -> None:
    """1 % in bursts of a whole second says far less than 1 % spread evenly."""
    random = np.random.default_rng(8)
    hits = 0
    for _ in range(200):
        found = proportion(outcomes(random.binomial(50, 0.02, 60).tolist(), 50), 0)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.02 <= found.high
    assert 182 <= hits <= 198
    even = proportion(outcomes([1, 0] * 50, 50), 0)
    burst = proportion(outcomes([0] * 49 + [50] + [0] * 50, 50), 0)
    assert even.value == burst.value == 0.01
    assert even.half_width is not None
    assert burst.half_width is not None
    assert burst.half_width > 3 * even.half_width
    assert burst.n_eff < 150


def test_no_failure_seen_is_not_no_failure() -> None:
    """The rule of three: 0 of 3,000 still allows 1 in 1,000."""
    found = proportion(outcomes([0] * 60, 50), 0)
    assert found.low == 0
    assert found.high == pytest.approx(3.84 / 3_003.84, rel=0.01)


def test_students_t_has_its_table_values() -> None:
    """The quantiles are a series: checked against the printed table."""
    for freedom, want in ((4, 2.776), (9, 2.262), (19, 2.093), (28.5, 2.047)):
        assert student(0.975, freedom) == pytest.approx(want, rel=2e-3)


def test_an_objective_passes_only_with_its_whole_interval() -> None:
    """A pass on a point estimate is a coin toss when the bound is near."""
    run = sample("iid", 1, 3_000, 50, seed=1)
    interval = confidence(ladder(run.latency[0], run.end[0]).blocks()).intervals["p95"]
    assert interval.low is not None
    assert interval.high is not None
    now = {"requests": 3_000, "duration_s": 60.0}
    assert judge(interval, "<=", interval.high, **now).state == "PASS"
    assert judge(interval, "<", interval.high, **now).state == "UNDECIDED"
    assert judge(interval, "<=", interval.low - 1, **now).state == "FAIL"
    assert judge(interval, ">=", interval.low, **now).state == "PASS"
    assert judge(interval, ">", interval.high + 1, **now).state == "FAIL"
    near = judge(interval, "<=", (interval.value + interval.high) / 2, **now)
    assert near.state == "UNDECIDED"
    assert near.needs.requests == pytest.approx(9_000, abs=2)  # half the distance: four times the requests
    assert near.needs.seconds == pytest.approx(180, rel=1e-3)
    assert judge(interval, "<=", interval.value, **now).needs == (None, None)
    assert judge(None, "<=", 1.0, **now).state == "UNDECIDED"


def test_an_objective_without_upper_bound_is_undecided_or_failed() -> None:
    """[50, inf) can fail an objective, never pass one, and says what it needs."""
    run = sample("iid", 1, 500, 10, seed=1)
    interval = confidence(ladder(run.latency[0], run.end[0]).blocks()).intervals["p99"]
    assert interval.low is not None
    assert interval.high is None
    now = {"requests": 500, "duration_s": 50.0}
    assert judge(interval, "<=", interval.low / 2, **now).state == "FAIL"
    undecided = judge(interval, "<=", 1e12, **now)
    assert undecided.state == "UNDECIDED"
    assert undecided.needs.requests is not None
    assert undecided.needs.requests > 1_000
    assert judge(interval, ">=", interval.low, **now).state == "PASS"


def test_a_goal_is_not_reached_by_one_narrow_look() -> None:
    """Among hundreds of looks one is narrow by chance: stopping there would stop too early."""
    run = sample("iid", 1, 3_000, 50, seed=1)
    interval = confidence(ladder(run.latency[0], run.end[0]).blocks()).intervals["p50"]
    width = interval.half_width
    assert width is not None
    wide = interval._replace(low=interval.value - 3 * width, high=interval.value + 3 * width)
    goal = Goal(2 * width / interval.value)
    for look in range(40):
        assert not goal.look(interval if look == 30 else wide, 3_000 + 50 * look)
    assert not goal.look(None, 5_050)
    looks = 0
    while not goal.look(interval, 5_100 + 50 * looks):
        looks += 1
        assert looks < 100
    assert looks > 3  # the narrow looks have to outweigh the wide ones first
