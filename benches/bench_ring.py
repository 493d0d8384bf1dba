"""What a record costs the worker and the collector, beside the ways that were not taken."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from llm_latency_lens.engine.records.lag import lag_bucket
from llm_latency_lens.engine.records.layout import Geometry
from llm_latency_lens.engine.records.reader import SegmentReader
from llm_latency_lens.engine.records.record import FIELDS, GAP_COALESCED, PAYLOAD_BYTES, RECORD, SERIES_SHIFT
from llm_latency_lens.engine.records.resume import resume_point
from llm_latency_lens.engine.records.ticks import CELL_BITS
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_ring import record_of, segments

GEOMETRY = Geometry(requests=1 << 16, gaps=1 << 20, details=8192, inflight=1024, phases=2, targets=2)
VALUES = tuple(record_of(7))
BATCH = 250  # records of a drain: 10k requests/s, 40 drains a second
GAPS_END = [name for name, _ in FIELDS].index("gaps_end")


class Segment:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = SegmentWriter.create(path, GEOMETRY, worker=0)
        self.reader = SegmentReader.open(path)

    def read(self) -> int:
        records = self.reader.requests()
        if len(records):
            self.reader.gaps(int(records["gaps_end"][-1]))
        self.reader.details()
        self.reader.release()
        return len(records)


@pytest.fixture
def segment() -> Iterator[Segment]:
    with segments() as directory:
        made = Segment(directory / "worker-0.0.ring")
        yield made
        made.reader.close()


def gaps_of(count: int) -> array[int]:
    return array("Q", [20_000_000 | 1 << SERIES_SHIFT | GAP_COALESCED] * count)


# --- the worker's end -------------------------------------------------------------------------------------------------


def some(benchmark: Any, segment: Segment, push: Callable[[], bool]) -> None:
    """Rounds of 100 pushes, each into a ring that was read."""

    def hundred() -> None:
        for _ in range(100):
            push()

    benchmark.pedantic(hundred, setup=lambda: segment.read() and None, rounds=100, warmup_rounds=5)
    benchmark.extra_info["us_per_push"] = round(benchmark.stats["median"] * 1e4, 2)
    assert segment.read() == 100 or segment.reader.cursors()[2]


@pytest.mark.parametrize("gaps", [0, 1, 32, 100, 1000])
def test_push(benchmark: Any, segment: Segment, gaps: int) -> None:
    words, push = gaps_of(gaps), segment.writer.push
    some(benchmark, segment, lambda: push(VALUES, words))


def test_push_into_a_full_ring(benchmark: Any, segment: Segment) -> None:
    words, push = gaps_of(100), segment.writer.push
    while push(VALUES, None):
        pass
    benchmark(push, VALUES, words)


def test_push_detail(benchmark: Any, segment: Segment) -> None:
    blob, push = b"x" * 200, segment.writer.push_detail
    some(benchmark, segment, lambda: push(blob))


def test_begin_sent_clear(benchmark: Any, segment: Segment) -> None:
    writer = segment.writer

    def one() -> None:
        writer.begin(5, 1000, 2_000_000_000, 0, 1)
        writer.sent(5, 2_000_000_100)
        writer.clear(5)

    benchmark(one)


def test_lag_bucket_and_count(benchmark: Any, segment: Segment) -> None:
    lag = segment.writer.lag

    def one() -> None:
        lag[lag_bucket(12_345)] += 1

    benchmark(one)


def test_gap_of_a_tick_by_call(benchmark: Any, segment: Segment) -> None:
    segment.writer.ticks.start(0, 1_000_000_000)
    benchmark(segment.writer.ticks.of(0).gap, 20_000_000, 500_000_000)


def test_gap_of_a_tick_in_place(benchmark: Any, segment: Segment) -> None:
    """As Exchange.take_one has it."""
    segment.writer.ticks.start(0, 1_000_000_000)
    live = segment.writer.ticks.of(0)
    live.row_at(0)

    def one(gap_ns: int = 20_000_000, stamp_ns: int = 500_000_000) -> None:
        row = live.row if live.begin_ns <= stamp_ns < live.end_ns else live.row_at(stamp_ns)
        shift = gap_ns.bit_length() - CELL_BITS - 1
        row[(shift << CELL_BITS) + (gap_ns >> shift)] += 1

    benchmark(one)


def test_first_gap_of_a_tick(benchmark: Any, segment: Segment) -> None:
    """With a new row: once per series and tick."""
    ticks = segment.writer.ticks
    ticks.start(0, 1_000)
    segment.reader.release_ticks(1 << 40)
    stamps = count(0, 1_000)
    live = ticks.of(0)

    def one() -> None:
        ticks.left = next(stamps) // 1_000
        live.leave(ticks.left)
        live.gap(20_000_000, ticks.left * 1_000)

    benchmark(one)


def test_trim(benchmark: Any, segment: Segment) -> None:
    benchmark(segment.writer.trim)


# --- gaps_end into the payload: the list copy is taken ----------------------------------------------------------------


def test_payload_by_list_copy(benchmark: Any) -> None:
    pack = RECORD.pack

    def one() -> bytes:
        fields = list(VALUES)
        fields[GAPS_END] = 5
        return pack(*fields)

    benchmark(one)


def test_payload_by_two_slices(benchmark: Any) -> None:
    pack = RECORD.pack
    benchmark(lambda: pack(*VALUES[:GAPS_END], 5, *VALUES[GAPS_END + 1 :]))


def test_payload_by_local_buffer(benchmark: Any) -> None:
    buffer = bytearray(PAYLOAD_BYTES)
    words, pack = memoryview(buffer).cast("Q"), RECORD.pack_into

    def one() -> None:
        pack(buffer, 0, *VALUES)
        words[GAPS_END] = 5

    benchmark(one)


# --- what guards 100 gaps: the crc is taken ---------------------------------------------------------------------------


def test_gaps_guarded_by_crc(benchmark: Any) -> None:
    words, memory = gaps_of(100), mmap.mmap(-1, 1 << 16)
    lane = memoryview(memory).cast("Q")

    def one() -> int:
        lane[512:612] = words
        return crc32(words)

    benchmark(one)


def test_gaps_guarded_by_lap_bits(benchmark: Any) -> None:
    """One addition to the whole array as a big integer, the quickest way found to set bits in each word."""
    words, memory = gaps_of(100), mmap.mmap(-1, 1 << 16)
    lane = memoryview(memory)
    laps = int.from_bytes((b"\0" * 7 + b"\x80") * 100, "little")

    def one() -> None:
        lane[4096:4896] = (int.from_bytes(words, "little") | laps).to_bytes(800, "little")

    benchmark(one)


# --- the collector's end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [4, 100])
def test_drain(benchmark: Any, segment: Segment, gaps: int) -> None:
    words = gaps_of(gaps)

    def fill() -> None:
        for _ in range(BATCH):
            assert segment.writer.push(VALUES, words)

    assert benchmark.pedantic(segment.read, setup=fill, rounds=40) == BATCH
    benchmark.extra_info["us_per_record"] = round(benchmark.stats["median"] * 1e6 / BATCH, 2)


def test_drain_of_nothing(benchmark: Any, segment: Segment) -> None:
    assert not benchmark(segment.read)


def test_leftovers(benchmark: Any, segment: Segment) -> None:
    for slot in range(100):
        segment.writer.begin(slot * 10, slot, 1, 0, 0)
    assert len(benchmark(segment.reader.leftovers)) == 100


def test_resume_point_of_a_full_ring(benchmark: Any, segment: Segment) -> None:
    while segment.writer.push(VALUES, None):
        pass
    benchmark.pedantic(resume_point, (segment.path,), rounds=5)


def test_create(benchmark: Any, segment: Segment) -> None:
    path = segment.path.with_name("other.ring")
    benchmark.pedantic(lambda: SegmentWriter.create(path, GEOMETRY, worker=0), rounds=5)
