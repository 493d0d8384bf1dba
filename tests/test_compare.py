"""The verdicts of a comparison: false alarms, power, direction, and what cannot be decided."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.compare import (
    Compared,
    Observed,
    Question,
    compare,
    effect_of,
    holm,
    runs_needed,
    t_beyond,
    t_quantile,
)
from llm_latency_lens.collectors.confidence import confidence
from llm_latency_lens.collectors.paired import paired_bounds
from tests.support_samples import SECOND, alike, ladder, sample

STATISTICS = {"p50": 0.5, "p99": 0.99}


def runs(seed: int, count: int, *, factor: float = 1.0, between: float = 0.02) -> dict[str, list[Observed]]:
    """p50 and p99 of `count` runs of 1,000 requests, which differ by 2 % beside what their requests do."""
    latency = sample("iid", count, 1_000, 20, seed=seed).latency
    scale = factor * np.exp(between * np.random.default_rng(seed + 1).standard_normal(count))
    rows = np.quantile(latency, list(STATISTICS.values()), axis=1) * scale
    return {name: [Observed(float(v)) for v in row] for name, row in zip(STATISTICS, rows, strict=True)}


def single(seed: int, *, factor: float = 1.0) -> dict[str, list[Observed]]:
    """p50 and p99 of one run of 60 s with the intervals of its blocks."""
    made = sample("iid", 1, 3_000, 50, seed=seed)
    intervals = confidence(ladder(made.latency[0] * factor, made.end[0]).blocks()).intervals
    found = {}
    for name in STATISTICS:
        value, low, high, *_ = intervals[name]
        bounds = [None if bound is None else bound / SECOND for bound in (low, high)]
        found[name] = [Observed(value / SECOND, *bounds)]
    return found


def asked(base: dict[str, list[Observed]], candidate: dict[str, list[Observed]], *, margin: float = 0.05) -> Compared:
    questions = [Question("t", "ttft_ms", name, base[name], candidate[name], margin) for name in STATISTICS]
    sides = ([f"run-{k}" for k in range(len(side["p50"]))] for side in (base, candidate))
    return compare(questions, base=next(sides), candidate=next(sides), margin=margin)


def alarmed(compared: Compared) -> bool:
    return any(each.verdict in ("worse", "better") for each in compared.comparisons)


def one(base: list[float], candidate: list[float], *, margin: float = 0.05, higher_is_better: bool = False) -> Compared:
    sides = [[Observed(value) for value in side] for side in (base, candidate)]
    question = Question("t", "e2e_ms", "mean", *sides, margin, higher_is_better)
    return compare([question], base=[str(k) for k in base], candidate=[str(k) for k in candidate], margin=margin)


@pytest.mark.slow
def test_equal_systems_raise_an_alarm_in_at_most_one_of_twenty_comparisons() -> None:
    """A gate that fails without a reason is switched off: 200 pairs of 5 runs of equal systems."""
    alarms = sum(alarmed(asked(runs(2 * k, 5), runs(50_000 + 2 * k, 5))) for k in range(200))
    assert alarms <= 10


@pytest.mark.slow
def test_equal_single_runs_raise_an_alarm_in_at_most_one_of_twenty_comparisons() -> None:
    """The same for single runs of 60 s, whose intervals come from their blocks."""
    alarms = sum(alarmed(asked(single(k), single(50_000 + k))) for k in range(200))
    assert alarms <= 14  # of 200 at 5 %, what 1 in 20 repetitions exceeds is 15


def test_a_single_pair_of_minutes_finds_a_tenth_more() -> None:
    """One run before and one after a change is what people have."""
    found = [asked(single(k), single(1_000 + k, factor=1.1)).comparisons[0].verdict for k in range(20)]
    assert found.count("worse") >= 18


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor", "margin"), [("p50", 1.05, 0.05), ("p99", 1.15, 0.15)])
def test_the_recommended_number_of_runs_finds_the_difference(name: str, factor: float, margin: float) -> None:
    """`needs about N runs` is a promise: at N the difference is found with probability 0.9, over many pilots."""
    found = 0
    for k in range(200):
        pilot = effect_of(runs(2 * k, 5)[name], runs(50_000 + 2 * k, 5, factor=factor)[name])
        assert pilot is not None
        n = runs_needed(pilot, margin=margin, comparisons=2)
        assert n is not None
        compared = asked(runs(100_000 + 2 * k, n), runs(150_000 + 2 * k, n, factor=factor), margin=margin)
        found += next(each.verdict for each in compared.comparisons if each.statistic == name) == "worse"
    assert found >= 174  # 0.9 of 200, less what chance explains in 1 of 10 repetitions


def test_students_t_is_right_for_the_few_degrees_of_freedom_of_few_runs() -> None:
    """Two runs a side have 2 degrees of freedom, where approximations of the quantile are off by half."""
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 8: 2.3060, 30: 2.0423}  # 0.975, any statistics textbook
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=1e-4)
        assert t_beyond(value, freedom) == pytest.approx(0.05, abs=1e-5)


def test_holms_procedure_stops_at_the_first_that_is_not_significant() -> None:
    """The example of every textbook: 0.01 and 0.005 pass, 0.03 fails at 0.025, and 0.04 with it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []


def test_a_faster_server_is_better_and_a_higher_rate_is_too() -> None:
    """The direction that is good depends on the metric."""
    slow, fast = [100.0, 101, 99], [80.0, 81, 79]
    assert one(slow, fast).comparisons[0].verdict == "better"
    assert one(fast, slow).comparisons[0].verdict == "worse"
    assert one(fast, slow, higher_is_better=True).comparisons[0].verdict == "better"
    assert one(slow, fast, higher_is_better=True).state == "FAIL"


def test_a_sure_difference_within_the_margin_is_the_same() -> None:
    """With many runs every difference is significant; only those that matter must fail a gate."""
    compared = one([100.0, 100.1, 99.9, 100], [101.0, 101.1, 100.9, 101])
    comparison = compared.comparisons[0]
    low, high = comparison.ci95
    assert low is not None
    assert high is not None
    assert 1 < low < high < 1.05
    assert (comparison.verdict, compared.state) == ("same", "PASS")


def test_an_undecided_comparison_says_how_many_runs_it_needs() -> None:
    """`undecided` without a way out helps nobody."""
    compared = one([100.0, 130, 80], [105.0, 128, 85])
    assert compared.state == "UNDECIDED"
    needs = next(note.detail for note in compared.notes if note.code == "needs_runs")
    assert "runs for e2e_ms mean of t" in needs
    assert not any(note.code == "needs_runs" for note in one([100.0, 101, 99], [100.0, 101, 99]).notes)


def test_the_ratio_is_that_of_the_geometric_means() -> None:
    """The interval is one of logarithms, so the values beside it are geometric means: the ratio is theirs."""
    comparison = one([10.0, 20, 40], [20.0, 40, 80]).comparisons[0]
    assert (comparison.base, comparison.candidate) == (pytest.approx(20), pytest.approx(40))
    assert comparison.ratio == pytest.approx(2)


def test_a_single_run_against_several_takes_their_spread_for_its_own() -> None:
    """One run of a new version against a history of runs is a common case; it has no spread of its own."""
    history = [100.0, 102, 98, 101, 99]
    assert one(history, [150.0]).comparisons[0].verdict == "worse"
    assert one([150.0], history).comparisons[0].verdict == "better"
    assert one(history, [102.0]).comparisons[0].verdict == "undecided"


def test_equal_values_have_an_interval_as_wide_as_a_cell_of_their_histograms() -> None:
    """Two runs that agree by chance in every digit must not make a difference of a thousandth significant."""
    comparison = one([50.0, 50.0], [50.02, 50.02]).comparisons[0]
    low, high = comparison.ci95
    assert low is not None
    assert high is not None
    assert high - low > 0.0005
    assert comparison.verdict == "same"


@pytest.mark.parametrize("sides", [([], [1.0]), ([1.0], []), ([0.0, 1.0], [1.0, 1.0])])
def test_what_has_no_ratio_is_undecided(sides: tuple[list[float], list[float]]) -> None:
    """A statistic that a run could not give, or a rate of 0, must neither pass nor crash."""
    comparison = one(*sides).comparisons[0]
    assert (comparison.ratio, comparison.ci95, comparison.verdict) == (None, (None, None), "undecided")


def test_a_missing_bound_leaves_that_side_open() -> None:
    """A p99 of too few requests has no upper bound: the ratio then has none either, and cannot be called better."""
    base = [Observed(100.0, 95.0, 105.0)]
    compared = compare(
        [Question("t", "ttft_ms", "p99", base, [Observed(50.0, 45.0, None)], 0.05)],
        base=["a"],
        candidate=["b"],
        margin=0.05,
    )
    low, high = compared.comparisons[0].ci95
    assert low is not None
    assert high is None
    assert compared.comparisons[0].verdict == "undecided"
    assert any(note.code == "too_short" for note in compared.notes)


def test_nothing_to_compare_is_not_a_pass() -> None:
    """A gate without a question has not looked."""
    assert compare([], base=["a"], candidate=["b"], margin=0.05).state == "UNDECIDED"


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=6),
    st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=6),
    st.floats(0.001, 1),
)
def test_swapping_the_sides_inverts_the_answer(base: list[float], candidate: list[float], margin: float) -> None:
    """Better one way is worse the other way, with inverse ratio and interval, whatever the numbers."""
    there = one(base, candidate, margin=margin).comparisons[0]
    back = one(candidate, base, margin=margin).comparisons[0]
    assert {there.verdict, back.verdict} in ({"same"}, {"undecided"}, {"better", "worse"})
    assert there.ratio is not None
    assert back.ratio is not None
    assert math.log(there.ratio) == pytest.approx(-math.log(back.ratio), abs=1e-9)


def pair(common: float, seed: int, factor: float = 1.0) -> Compared:
    """The median of two runs of one seed, of a queue at load 0.5 for 60 s; `common` of a request's work is the same."""
    runs = alike("mm1 0.5", 3_000, 50, common=common, seed=seed, factor=factor)
    blocks = [ladder(*run).blocks() for run in runs]
    intervals = [confidence(each).intervals["p50"] for each in blocks]
    base, candidate = ([Observed(each.value, each.low, each.high)] for each in intervals)
    bounds = paired_bounds(blocks[0], blocks[1], "p50")
    question = Question("t", "ttft_ms", "p50", base, candidate, 0.05, paired=bounds)
    return compare([question], base=["a"], candidate=["b"], margin=0.05)


def test_runs_of_one_seed_find_what_their_common_noise_would_hide() -> None:
    """A queue varies more in a minute than a tenth; two runs with the same arrivals and lengths vary together."""
    found = [pair(0.9, seed, factor=1.1).comparisons[0].verdict for seed in range(12)]
    assert found.count("worse") == 12


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.9])
def test_pairing_raises_no_more_alarms_whatever_the_runs_have_in_common(common: float) -> None:
    """Where nothing is common the blocks' differences say so themselves; where nearly all is, little noise is left."""
    assert sum(alarmed(pair(common, seed)) for seed in range(80)) <= 8  # of 80 at 5 %, what 1 in 50 repetitions exceeds


@pytest.mark.parametrize("statistic", ["mean", "p50", "p99"])
def test_a_run_is_no_different_from_itself(statistic: str) -> None:
    """All noise is common then; a run twice as slow is twice as slow."""
    (latency, end), _ = alike("mm1 0.5", 3_000, 50, common=1.0, seed=1)
    blocks = ladder(latency, end).blocks()
    assert paired_bounds(blocks, blocks, statistic) == (0.0, 0.0)
    double = paired_bounds(blocks, ladder(2 * latency, end).blocks(), statistic)
    assert double is not None
    assert double[0] <= math.log(2) + 0.01
    assert double[1] >= math.log(2) - 0.01


def test_blocks_that_do_not_lie_side_by_side_are_not_paired() -> None:
    """Other seconds have other arrivals; too few blocks have no variance."""
    (latency, end), _ = alike("ar 0", 500, 50, common=1.0, seed=1)
    short = ladder(latency, end).blocks()
    assert paired_bounds(short, short, "p50") is None
    (latency, end), _ = alike("ar 0", 3_000, 50, common=1.0, seed=1)
    long, later = ladder(latency, end).blocks(), ladder(latency, end + 50).blocks()
    assert paired_bounds(long, later, "p50") is None
    assert paired_bounds(long, long, "p50") is not None
