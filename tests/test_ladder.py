"""The ladder of blocks: bounded, exact, and the same again after a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.histogram import CELLS, Histogram
from llm_latency_lens.collectors.ladder import FLOOR, Ladder, Ladders

Ticks = list[tuple[int, dict[int, int]]]  # (ticks since the last one, count by cell)

TICKS = st.lists(
    st.tuples(st.integers(0, 40), st.dictionaries(st.integers(0, CELLS - 1), st.integers(1, 1 << 33), max_size=6)),
    min_size=1,
    max_size=60,
)


def fill(ladder: Ladder, ticks: Ticks, *, start: int = 1000) -> int:
    """Adds the ticks; returns the last one's number."""
    tick = start
    for step, counts in ticks:
        tick += step
        cells = np.array(sorted(counts), np.int64)
        ladder.add(tick, cells, np.array([counts[cell] for cell in sorted(counts)], np.int64))
    return tick


def content(ladder: Ladder) -> tuple[object, ...]:
    blocks = ladder.blocks()
    return blocks.block.tolist(), blocks.cell.tolist(), blocks.count.tolist(), blocks.size, blocks.span, blocks.first


@settings(max_examples=60, deadline=None)
@given(TICKS, st.sampled_from([2, 4, 16]))
def test_no_count_is_lost_over_any_adds_and_merges(ticks: Ticks, limit: int) -> None:
    """Intervals would be of other data than the totals: every cell's sum stays exact, beyond 32 bits too."""
    ladder = Ladder(limit=limit)
    fill(ladder, ticks)
    want: dict[int, int] = {}
    for _, counts in ticks:
        for cell, count in counts.items():
            want[cell] = want.get(cell, 0) + count
    blocks = ladder.blocks()
    found: dict[int, int] = {}
    for cell, count in zip(blocks.cell.tolist(), blocks.count.tolist(), strict=True):
        found[cell] = found.get(cell, 0) + count
    assert found == want
    assert len(ladder) <= limit


@settings(max_examples=60, deadline=None)
@given(TICKS, TICKS)
def test_a_restored_ladder_goes_on_like_the_original(before: Ticks, after: Ticks) -> None:
    """The collector replays the ticks after its last base frame: a SIGKILL must not show in any interval."""
    original = Ladder(limit=8)
    tick = fill(original, before)
    restored = Ladder.unpacked(original.packed())
    assert content(restored) == content(original)
    fill(original, after, start=tick)
    fill(restored, after, start=tick)
    assert content(restored) == content(original)
    assert restored.packed() == original.packed()


@settings(max_examples=60, deadline=None)
@given(TICKS)
def test_blocks_are_of_equal_duration_and_hold_the_ticks_of_their_time(ticks: Ticks) -> None:
    """Batch means compare blocks: a time without requests must be empty blocks, not missing ones."""
    ladder = Ladder(limit=16)
    last = fill(ladder, ticks)
    blocks = ladder.blocks()
    first = (1000 + ticks[0][0]) // blocks.span * blocks.span
    assert blocks.first == first
    assert blocks.size == (last - first) // blocks.span + 1
    tick, want = 1000, np.zeros(blocks.size, np.int64)
    for step, counts in ticks:
        tick += step
        want[(tick - first) // blocks.span] += sum(counts.values())
    assert blocks.totals.tolist() == want.tolist()


def test_the_thresholds_of_all_blocks_come_in_one_pass() -> None:
    """`upto` is what every interval rests on; checked against counting by hand."""
    random = np.random.default_rng(3)
    ladder, rows = Ladder(), []
    for tick in range(50):
        cells, counts = np.unique(random.integers(0, 200, 30), return_counts=True)
        ladder.add(tick, cells, counts)
        rows.append(dict(zip(cells.tolist(), counts.tolist(), strict=True)))
    wanted = [3, 77, 77, 150]
    found = ladder.blocks().upto(np.array(wanted))
    assert found.tolist() == [[sum(n for cell, n in row.items() if cell <= edge) for row in rows] for edge in wanted]


def test_a_cut_is_the_histogram_of_its_ticks() -> None:
    """The steady window's percentiles are those of its own requests, none before and none after."""
    random = np.random.default_rng(4)
    ladder, window = Ladder(), Histogram()
    for tick in range(30):
        histogram = Histogram()
        histogram.record(random.integers(1_000_000, 90_000_000, 20))
        ladder.add_histogram(tick, histogram)
        if 5 <= tick < 25:
            window.add(histogram)
    found = ladder.blocks().cut(5, 25).histogram()
    assert found.count == window.count
    assert found.percentiles([50, 99]) == pytest.approx(window.percentiles([50, 99]), rel=1e-3)


def test_a_wide_distribution_is_merged_to_its_budget() -> None:
    """A week of gaps over thousands of cells must not outgrow the memory that a quiet metric needs."""
    random = np.random.default_rng(5)
    ladder = Ladder(budget=20_000)
    for tick in range(700):
        cells = np.unique(random.integers(0, 3_000, 200))
        ladder.add(tick, cells, np.ones(len(cells), np.int64))
    assert ladder.filled <= 20_000 or len(ladder) <= FLOOR
    assert ladder.memory_bytes < 6 * 3_000 * FLOOR * 1.3
    assert len(ladder) >= FLOOR // 2


def test_all_ladders_share_one_budget() -> None:
    """Phases and targets multiply: their number must not multiply the memory."""
    random = np.random.default_rng(6)
    ladders: Ladders[tuple[int, str]] = Ladders(total_budget=80_000)
    for tick in range(400):
        for target in range(5):
            histogram = Histogram()
            histogram.record(random.integers(100_000_000, 110_000_000, 60))
            ladders.add_histogram((target, "e2e_ms"), tick, histogram)
    assert sum(ladder.filled for _, ladder in ladders) <= 80_000
    assert all(int(ladder.blocks().totals.sum()) == 24_000 for _, ladder in ladders)
    restored: Ladders[tuple[int, str]] = Ladders(total_budget=80_000)
    for key, packed in ladders.packed():
        restored.put(key, Ladder.unpacked(packed))
    assert restored.packed() == ladders.packed()
