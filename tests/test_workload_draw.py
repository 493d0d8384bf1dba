"""Chance that any worker can compute: the distributions are those that were asked for, and shares converge."""

from __future__ import annotations

from collections import Counter
from math import log
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Length
from llm_latency_lens.engine.workload.draw import PERIOD_MAX, Permutation, Shares, Weighted, key_of, lengths, mix, unit

N = 20_000


def drawn(length: Length, count: int = N) -> list[int]:
    draw = lengths(length, "here")
    key = key_of(1, "test")
    return [draw(mix(key ^ i)) for i in range(count)]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_takes_every_index_once(count: int, key: int) -> None:
    """A shuffled pass that missed or repeated a row would change what is measured."""
    order = Permutation(count, key)
    assert sorted(map(order, range(count))) == list(range(count))


def test_permutations_of_different_keys_differ_and_none_is_the_file_order() -> None:
    """Each pass and each seed has an order of its own."""
    orders = [tuple(map(Permutation(100, key_of(key)), range(100))) for key in range(20)]
    assert len(set(orders)) == 20
    assert tuple(range(100)) not in orders


@given(st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=20)), min_size=2, max_size=2, unique=True))
def test_keys_of_different_parts_differ(parts: list[int | str]) -> None:
    """Two purposes with one key would draw the same numbers: lengths tied to texts."""
    if key_of(parts[0]) == key_of(parts[1]):
        encoded = [p if isinstance(p, int) else int.from_bytes(p.encode(), "little") for p in parts]
        assert encoded[0] == encoded[1]  # a text and the number it is spelled by: never both in one place


def test_units_are_never_0_or_1() -> None:
    """The quantiles of both are infinite."""
    assert 0 < unit(0) < unit(2**64 - 1) < 1


@pytest.mark.parametrize(
    ("length", "mean", "deviation"),
    [
        (Length(kind="fixed", mean=150), 150, 0),
        (Length(kind="normal", mean=550, stddev=150), 550, 150),
        (Length(kind="normal", mean=550), 550, 0),
        (Length(kind="lognormal", mean=550, stddev=300), 550, 300),
        (Length(kind="uniform", low=100, high=200), 150, 29.15),
        (Length(kind="empirical", values=(10, 20), weights=(3, 1)), 12.5, 4.33),
        (Length(kind="empirical", values=(10, 20, 30)), 20, 8.165),
    ],
)
def test_lengths_have_the_moments_that_were_asked_for(length: Length, mean: float, deviation: float) -> None:
    """The mean of a lognormal is that of its lengths, not of their logarithms."""
    values = drawn(length)
    assert abs(fmean(values) - mean) <= 4 * deviation / N**0.5 + 1e-9
    assert stdev(values) == pytest.approx(deviation, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "uniform"])
def test_a_bounded_length_is_truncated_not_clamped(kind: str) -> None:
    """Clamped lengths heap up at the ends, and a percentile sits on the heap."""
    values = drawn(Length(kind=kind, mean=100, stddev=60, low=90, high=110))  # type: ignore[arg-type]  # by name
    assert min(values) == 90
    assert max(values) == 110
    # Clamping would put more than a third of all on each end; 21 lengths share about evenly.
    assert values.count(90) < N * 0.08
    assert values.count(110) < N * 0.08


def test_empirical_values_outside_the_bounds_are_not_drawn() -> None:
    """Bounds of the plan hold for every kind of length."""
    assert set(drawn(Length(kind="empirical", values=(1, 50, 1000), low=2, high=100))) == {50}


BAD_LENGTHS: list[tuple[Length, str]] = [
    (Length(kind="normal", mean=10, stddev=1, low=1000, high=2000), "between low and high"),
    (Length(kind="empirical", values=(1,), low=2), "between low and high"),
    (Length(mean=9_999_999_999), "at most 10,000,000 tokens, got 9,999,999,999"),
    (Length(kind="uniform", low=1, high=1 << 40), "at most 10,000,000 tokens"),
    (Length(kind="empirical", values=(1, 1 << 40)), "at most 10,000,000 tokens"),
    (Length(kind="normal", mean=1e12, stddev=1), "at most 10,000,000 tokens"),
]


def test_a_length_that_no_text_can_have_is_refused_by_name() -> None:
    """Ten billion tokens were a hang: the text was being made."""
    for length, what in BAD_LENGTHS:
        with pytest.raises(PlanError, match=what) as caught:
            lengths(length, "workload.input_tokens")
        assert "(workload.input_tokens)" in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 2**32), st.integers(1, 5000))
def test_target_shares_stay_within_a_logarithm_of_exact(weights: list[float], seed: int, count: int) -> None:
    """Whatever the weights, and after every number of slots."""
    pick = Shares(weights, seed)
    picked = [pick(slot) for slot in range(count)]
    for i, weight in enumerate(weights):
        assert abs(picked.count(i) - count * weight / sum(weights)) <= 4 + 2 * log(count)


def test_each_of_several_workers_keeps_the_shares_too() -> None:
    """A worker with one target alone would measure that target from one core."""
    pick = Shares([3, 1], 5)
    for workers in (2, 3, 4, 8, 13):
        for worker in range(workers):
            picked = [pick(slot) for slot in range(worker, 4000 * workers, workers)]
            assert abs(picked.count(1) - 1000) <= 25


def test_a_target_of_weight_zero_is_never_asked() -> None:
    """Rounding at the end of the interval must not reach it."""
    for weights in ((0, 1, 0), (1, 0, 1), (1, 1, 0)):
        pick = Shares(weights, 1)
        assert {pick(slot) for slot in range(1000)} == {i for i, weight in enumerate(weights) if weight}


def test_eight_equal_targets_get_four_of_32_requests_each() -> None:
    """The counts were 7,0,7,2,6,2,6,2: a comparison of targets by so few requests says nothing."""
    for seed in range(50):
        picked = [Shares([1] * 8, seed)(slot) for slot in range(32)]
        assert Counter(picked) == dict.fromkeys(range(8), 4)


WEIGHTS: list[tuple[list[float], int]] = [
    ([1] * 8, 8),
    ([3, 1], 4),
    ([1, 0, 2], 3),
    ([0.5, 0.25, 1.25], 8),
    ([5, 1, 1], 7),
    ([0.1, 0.2, 0.7], 10),
]


@pytest.mark.parametrize(("weights", "period"), WEIGHTS, ids=str)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 8, 13])
def test_shares_are_exact_over_all_workers_and_even_in_each_of_them(
    weights: list[float], period: int, workers: int
) -> None:
    """Also where the numbers of workers and targets have a common factor: without care, a worker meets one target."""
    pick, total, each = Shares(weights, 11), sum(weights), 1000
    shares = [[pick(slot) for slot in range(worker, each * workers, workers)] for worker in range(workers)]
    for picked in shares:
        for i, weight in enumerate(weights):
            assert abs(picked.count(i) - each * weight / total) <= 31
    merged = [shares[slot % workers][slot // workers] for slot in range(each * workers)]
    for begin in range(0, each * workers - period, period):
        counts = [merged[begin : begin + period].count(i) for i in range(len(weights))]
        assert counts == [round(period * weight / total) for weight in weights]


def test_weights_without_a_short_period_still_keep_their_shares() -> None:
    """No table of millions of slots is made for an odd weight."""
    weights = [1.0, 1 / PERIOD_MAX / 7, 2.0]
    pick = Shares(weights, 1)
    picked = [pick(slot) for slot in range(30_000)]
    for i, weight in enumerate(weights):
        assert abs(picked.count(i) - 30_000 * weight / sum(weights)) <= 25


def test_a_weighted_choice_covers_all_of_the_unit_interval() -> None:
    """The ends are where a rounding error would pick nothing."""
    choice = Weighted([1, 0, 3, 0])
    assert [choice.pick(u) for u in (0.0, 0.2499, 0.25, 0.9999999999999999)] == [0, 0, 2, 2]
