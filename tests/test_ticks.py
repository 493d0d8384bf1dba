"""What happens now, by tick: words in shared memory that a worker increments and the collector reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.collectors.checkpoint import Progress
from llm_latency_lens.collectors.intake import Intake
from llm_latency_lens.collectors.live import LiveTicks
from llm_latency_lens.collectors.series import Series, Slab, Tally
from llm_latency_lens.collectors.totals import settle
from llm_latency_lens.engine.errors import SegmentError
from llm_latency_lens.engine.records.layout import Geometry, Layout
from llm_latency_lens.engine.records.record import GAP_MAX
from llm_latency_lens.engine.records.resume import mark_dead
from llm_latency_lens.engine.records.ticks import CELL_MIN, GAP_CELLS, cell_middle, cell_of
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_collector import MS, SECOND, START, fields, happens, series
from tests.support_ring import segments

GEOMETRY = Geometry(16, 64, 16, 4, phases=1, targets=2, ticks=8)


@pytest.fixture
def directory() -> Iterator[Path]:
    with segments() as made:
        yield made


class Pair:
    """A worker's end and a collector's, with the ticks that were closed. A checkpoint follows every close."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writer = SegmentWriter.create(directory / "worker-0.0.ring", GEOMETRY, worker=0)
        self.writer.ticks.start(START, SECOND)
        self.tokens: list[list[int]] = []  # by tick, of each series
        self.saved = Progress()
        self.restart()

    def restart(self) -> None:
        """A collector that has what the last checkpoint has."""
        self.intake = Intake(self.directory, self.saved)
        self.live = LiveTicks(GEOMETRY.targets, self.saved)
        self.intake.scan()

    def close(self, ticks: int = 1, *, saved: bool = True) -> None:
        first = len(self.tokens)
        for _ in self.intake.drain(finished=False):
            pass
        self.live.read(self.intake.segments, first, first + ticks)
        for tick in range(first, first + ticks):
            slab = Slab()
            self.live.close(tick, slab)
            self.tokens.append([int(slab.at((0, target)).tally[Tally.LIVE_TOKEN_EVENTS]) for target in (0, 1)])
        if saved:
            self.saved = Progress()
            self.intake.save(self.saved)
            self.live.save(self.saved)
            self.live.release(self.intake.segments)
            self.intake.release()

    def gap(self, at_s: float, *, series: int = 0) -> None:
        self.writer.ticks.of(series).gap(20 * MS, START + round(at_s * SECOND))


@pytest.fixture
def pair(directory: Path) -> Pair:
    return Pair(directory)


@given(st.integers(CELL_MIN, GAP_MAX))
def test_a_cell_is_at_most_1_6_percent_wide(gap_ns: int) -> None:
    """What a tick shows of a gap is its cell's middle: half a cell off at most."""
    middle = cell_middle(cell_of(gap_ns) - GAP_CELLS)
    assert abs(middle - gap_ns) <= gap_ns / 128 + 1


@pytest.mark.parametrize("gap_ns", [-5, 0, 1, CELL_MIN - 1, GAP_MAX + 1, 1 << 70])
def test_what_no_cell_holds_falls_in_the_outermost(gap_ns: int) -> None:
    """A step of the clock may make any number of a gap, and must not write outside its row."""
    assert cell_of(gap_ns) == cell_of(CELL_MIN if gap_ns < CELL_MIN else GAP_MAX)


def test_a_token_counts_in_the_tick_of_its_stamp_in_whatever_order_it_is_read(pair: Pair) -> None:
    """A worker reads one stream after the other: stamps of both sides of an edge come mixed."""
    for at_s in (0.1, 1.2, 0.99, 2.0, 1.999_999_999, 0.5):
        pair.gap(at_s)
    pair.close(3)
    assert pair.tokens == [[3, 0], [2, 0], [1, 0]]


def test_series_are_apart(pair: Pair) -> None:
    """Two targets of one worker, in the same ticks."""
    pair.gap(0.5)
    pair.gap(0.6, series=1)
    pair.gap(1.6, series=1)
    pair.close(2)
    assert pair.tokens == [[1, 1], [0, 1]]


def test_a_token_read_after_its_tick_was_closed_counts_in_the_oldest_open_one(pair: Pair) -> None:
    """A worker that was stopped for a while: its tokens may be late, and none may be missing or doubled."""
    pair.gap(0.5)
    pair.close()
    pair.gap(0.9)  # the worker does not know yet that the tick is closed
    pair.close()
    pair.gap(0.95)
    pair.writer.ticks.acknowledge()
    pair.gap(0.99)  # now it knows
    pair.gap(1.5)
    pair.close(2)
    assert pair.tokens == [[1, 0], [1, 0], [3, 0], [0, 0]]


def test_rows_are_used_again_only_after_a_checkpoint(pair: Pair) -> None:
    """Ten times as many ticks as rows, with collectors that die before and after their checkpoint."""
    for tick in range(10 * GEOMETRY.ticks):
        pair.gap(tick + 0.25)
        pair.gap(tick + 0.75, series=1)
        if tick % 3 == 0:
            pair.close(saved=False)
            pair.tokens.pop()
            pair.restart()
        pair.close()
        pair.writer.ticks.acknowledge()
    assert pair.tokens == [[1, 1]] * 10 * GEOMETRY.ticks


def test_a_collector_that_stays_away_too_long_loses_no_token(pair: Pair) -> None:
    """More ticks than rows: the series' last rows take the rest, which is then in the wrong tick and nowhere missing."""
    for tick in range(3 * GEOMETRY.ticks):
        pair.gap(tick + 0.5)
    pair.gap(0.5, series=1)  # a series that had none so far still finds a row
    pair.close(3 * GEOMETRY.ticks)
    assert [sum(column) for column in zip(*pair.tokens, strict=True)] == [3 * GEOMETRY.ticks, 1]
    assert pair.tokens[: GEOMETRY.ticks - 2] == [[1, 1], *[[1, 0]] * (GEOMETRY.ticks - 3)]


def test_a_killed_workers_rows_are_read_to_the_end_before_its_segment_goes(pair: Pair) -> None:
    """It died in tick 1 while tick 0 was being closed: tick 1 must still have what it did."""
    pair.gap(0.5)
    pair.gap(1.5)
    mark_dead(pair.writer.path)
    pair.close()
    assert not pair.writer.path.exists()
    pair.restart()
    pair.close()
    assert pair.tokens == [[1, 0], [1, 0]]


def test_what_came_after_the_last_tick_is_part_of_it(pair: Pair) -> None:
    """The run's last tick ends with the last record; a killed worker's tokens may be younger."""
    pair.gap(0.5)
    pair.gap(1.5)
    mark_dead(pair.writer.path)
    for _ in pair.intake.drain(finished=False):
        pass
    pair.live.read(pair.intake.segments, 0, 0)
    assert pair.live.newest == 1
    pair.live.fold(0)
    pair.close()
    assert pair.tokens == [[2, 0]]


def test_a_request_has_its_first_token_and_its_gaps_in_the_tick(pair: Pair) -> None:
    """TTFT and ITL of the tick, within half a cell of the truth."""
    happens(pair.writer, 1, START + MS, 30 * MS, 40 * MS, 50 * MS, ttft_ns=700 * MS)
    pair.live.read(pair.intake.segments, 0, 1)
    slab = Slab()
    found = pair.live.close(0, slab)[0, 1]
    assert slab.at((0, 1)).tally[Tally.LIVE_SENT] == 1
    assert [each.count for each in (found["ttft_ms"], found["itl_ms"])] == [1, 3]
    assert found["ttft_ms"].mean == pytest.approx(700 * MS, rel=0.01)
    assert found["itl_ms"].mean == pytest.approx(40 * MS, rel=0.01)


def test_fewer_rows_than_series_are_refused() -> None:
    """Each series needs one row that is its own."""
    with pytest.raises(SegmentError, match="2 series need as many tick rows, got 1"):
        Layout(GEOMETRY._replace(ticks=1))


def tokens_of(*ticks: tuple[int, dict[str, int] | None]) -> list[int]:
    """The tokens of each tick, given as its token events and an ok request that ended in it, or None."""
    total, found = Series().tally, []
    for token_events, ended in ticks:
        tally = series(fields(**ended)).tally if ended else Series().tally
        tally[Tally.LIVE_TOKEN_EVENTS] = token_events
        settle(tally, total)
        total = total + tally
        found.append(int(tally[Tally.LIVE_TOKENS]))
    return found


def test_tokens_are_events_until_the_provider_says_more() -> None:
    """A stream of 3 ticks whose usage says 33 tokens for 30 events: the rest counts when it is known."""
    assert tokens_of((10, None), (10, None), (10, {"output_tokens": 33, "token_events": 30})) == [10, 10, 13]


def test_events_that_carry_several_tokens_count_as_those_that_ended_did() -> None:
    """After the first reply the rate is right at once, and at the end the sum is what was reported."""
    ended = {"output_tokens": 40, "token_events": 10}
    assert tokens_of((10, ended), (5, None), (5, ended), (10, ended)) == [40, 20, 20, 40]


def test_a_reply_in_one_piece_counts_when_it_is_there() -> None:
    """It has no token events before its end."""
    assert tokens_of((0, None), (1, {"output_tokens": 150, "token_events": 1})) == [0, 150]


def test_an_estimate_that_was_too_high_is_made_up_for_and_never_negative() -> None:
    """A counter that falls is a restart to Prometheus."""
    four, one = {"output_tokens": 40, "token_events": 10}, {"output_tokens": 30, "token_events": 30}
    found = tokens_of((10, four), (20, None), (10, one), (10, {"output_tokens": 10, "token_events": 10}))
    assert found[:2] == [40, 80]
    assert min(found) >= 0


def test_requests_that_do_not_end_well_keep_their_tokens() -> None:
    """They arrived: a tick shows what happened, the run's total what `ok` requests brought."""
    assert tokens_of((7, None), (10, {"output_tokens": 10, "token_events": 10})) == [7, 10]
