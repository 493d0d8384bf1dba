"""The histogram against hdrh, value by value, and its exact moments against plain arithmetic."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors import histogram as h
from llm_latency_lens.collectors.histogram import DIGITS, HIGHEST, LOWEST, Histogram

# powers of two and their neighbours are where a cell, a block or an octave ends
EDGES = [(1 << bits) + d for bits in range(9, 42) for d in (-1, 0, 1) if LOWEST <= (1 << bits) + d <= HIGHEST]
inside = st.one_of(
    st.integers(LOWEST, HIGHEST), st.sampled_from([LOWEST, HIGHEST, *EDGES]), st.integers(LOWEST, 2_000_000)
)
anything = st.one_of(inside, st.integers(-(1 << 40), LOWEST), st.integers(HIGHEST, 1 << 62))


def recorded(values: list[int]) -> Histogram:
    made = Histogram()
    made.record(np.array(values, np.int64))
    return made


def one_by_one(values: list[int]) -> HdrHistogram:
    made = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    for value in values:
        assert made.record_value(min(max(value, LOWEST), HIGHEST))
    return made


def dense(histogram: Histogram) -> list[int]:
    counts = np.zeros(h.CELLS, np.int64)
    counts[histogram.first : histogram.first + len(histogram.counts)] = histogram.counts
    return counts.tolist()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(anything, max_size=60))
def test_bulk_counts_are_those_of_hdrh_recording_one_by_one(values: list[int]) -> None:
    assert dense(recorded(values)) == list(one_by_one(values).counts)


@settings(deadline=None)
@given(inside)
def test_a_cell_holds_exactly_the_values_between_its_bounds(value: int) -> None:
    index = h.index_of(value)
    assert h.lowest_equivalent(index) <= value <= h.highest_equivalent(index)
    assert h.lowest_equivalent(index + 1) == h.highest_equivalent(index) + 1
    assert h.highest_equivalent(index) == one_by_one([]).get_highest_equivalent_value(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(inside, min_size=1, max_size=60), st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_percentiles_are_hdrhs_but_never_beyond_the_exact_extremes(values: list[int], wanted: list[float]) -> None:
    reference = one_by_one(values)
    reported = recorded(values).percentiles(wanted)
    expected = [min(max(reference.get_value_at_percentile(p), min(values)), max(values)) for p in wanted]
    assert reported == expected


@settings(deadline=None)
@given(st.lists(anything, max_size=40), st.lists(anything, max_size=40))
def test_merging_is_recording_both(left: list[int], right: list[int]) -> None:
    merged, both = recorded(left), recorded(left + right)
    merged.add(recorded(right))
    assert dense(merged) == dense(both)
    for field in ("count", "sum", "min", "max", "clamped_low", "clamped_high"):
        assert getattr(merged, field) == getattr(both, field), field
    if left or right:
        assert merged.stddev == pytest.approx(both.stddev, rel=1e-6, abs=1e-3)


@settings(deadline=None)
@given(st.lists(inside, min_size=2, max_size=50))
def test_the_moments_are_exact(values: list[int]) -> None:
    made = recorded(values)
    assert made.sum == sum(values)
    assert made.mean == sum(values) / len(values)
    assert made.stddev == pytest.approx(statistics.pstdev(values), rel=1e-6, abs=1e-3)
    assert (made.min, made.max) == (min(values), max(values))


def test_values_outside_are_clamped_and_counted_and_the_extremes_stay_theirs() -> None:
    values = [-5, 0, 999, 1_000, HIGHEST, HIGHEST + 1, 1 << 60]
    made = recorded(values)
    assert (made.clamped_low, made.clamped_high) == (3, 2)
    assert (made.min, made.max) == (-5, 1 << 60)
    assert made.percentiles([1.0]) == [1_023]
    assert made.sum == sum(values)


@settings(deadline=None)
@given(st.lists(anything, max_size=40))
def test_a_checkpoint_gives_back_the_same_histogram(values: list[int]) -> None:
    made = recorded(values)
    back = Histogram.unpacked(made.packed())
    assert dense(back) == dense(made)
    assert back.packed() == made.packed()


@settings(max_examples=30, deadline=None)
@given(st.lists(inside, min_size=1, max_size=40))
def test_encoding_by_hdrh_and_back_keeps_every_count(values: list[int]) -> None:
    made = recorded(values)
    decoded = HdrHistogram.decode(made.hdr().encode())
    assert list(decoded.counts) == dense(made)
    assert dense(Histogram.from_hdr(decoded)) == dense(made)


def test_only_the_touched_octaves_are_kept() -> None:
    made = recorded([50_000_000, 53_000_000])
    assert len(made.counts) == h.BLOCK


def test_an_empty_histogram_has_no_numbers() -> None:
    made = Histogram()
    assert made.percentiles([50]) is None
    assert (made.mean, made.stddev, made.min, made.max) == (None, None, None, None)
    assert made.below([1, 2]) == [0, 0, 0]


@settings(deadline=None)
@given(st.lists(inside, max_size=50), st.lists(inside, min_size=1, max_size=6, unique=True).map(sorted))
def test_buckets_count_every_value_once_and_none_above_its_bound_by_more_than_a_cell(
    values: list[int], bounds: list[int]
) -> None:
    reported = recorded(values).below(bounds)
    assert sum(reported) == len(values)
    for place, bound in enumerate(bounds):
        within = sum(reported[: place + 1])
        top = h.highest_equivalent(h.index_of(bound))
        assert sum(v <= bound for v in values) <= within == sum(v <= top for v in values)
