"""Ring segments: what goes in comes out, what finds no room is counted, what does not fit its crc stays unread."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import SegmentError
from llm_latency_lens.engine.records.lag import LAG_BUCKETS, lag_bucket, lag_value
from llm_latency_lens.engine.records.layout import (
    DETAIL_MAX,
    NUMBER_MASK,
    PAGE,
    PHASE_SHIFT,
    SLOT_MASK,
    TURN_SHIFT,
    Counter,
    Geometry,
    Layout,
    State,
    page_up,
)
from llm_latency_lens.engine.records.reader import Leftover, SegmentReader
from llm_latency_lens.engine.records.record import FIELDS, NO_TARGET, OUTCOMES, SLOT_BYTES, Outcome, record_dtype
from llm_latency_lens.engine.records.resume import mark_dead, resume_point
from llm_latency_lens.engine.records.ticks import ROW_BYTES
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_ring import (
    HAMMERED,
    NAMES,
    TEMPLATES,
    detail_of,
    gaps_of,
    record_of,
    segments,
    unsent_run,
    values_of,
)

SCRIPT = Path(__file__).with_name("support_ring.py")
SMALL = Geometry(requests=4, gaps=64, details=4, inflight=4, phases=2, targets=3)
GAPS_END = NAMES.index("gaps_end")
EXPECTED = np.array([tuple(record_of(number)) for number in range(TEMPLATES)], np.dtype([(n, "<u8") for n in NAMES]))


class Pair:
    """A writer and a reader of one segment."""

    def __init__(self, directory: Path, geometry: Geometry = SMALL) -> None:
        self.path = directory / "worker-0.0.ring"
        self.writer = SegmentWriter.create(self.path, geometry, worker=0)
        self.reader = SegmentReader.open(self.path)

    def push(self, number: int, gaps: array[int] | None = None, **given: int) -> bool:
        values = record_of(number)
        for name, value in given.items():
            values[NAMES.index(name)] = value
        return self.writer.push(values, gaps)

    def read(self) -> tuple[list[int], list[int]]:
        """(request numbers, gap words) that are new; checks each record against what its number says."""
        records = self.reader.requests()
        check(records)
        words = self.reader.gaps(int(records["gaps_end"][-1])) if len(records) else np.zeros(0, np.uint64)
        return records["request"].tolist(), words.tolist()

    def counter(self, counter: Counter) -> int:
        return self.reader.counters()[counter]

    def close(self) -> None:
        self.reader.close()
        self.path.unlink()


def check(records: np.ndarray[Any, Any]) -> None:
    expected = EXPECTED[records["request"] % TEMPLATES]
    for name in NAMES:
        if name not in ("request", "gaps_end"):
            np.testing.assert_array_equal(records[name], expected[name], err_msg=name)


@pytest.fixture
def directory() -> Iterator[Path]:
    with segments() as made:
        yield made


@pytest.fixture
def pair(directory: Path) -> Iterator[Pair]:
    made = Pair(directory)
    yield made
    made.close()


def words(count: int, start: int = 100) -> array[int]:
    return array("Q", range(start, start + count))


# --- in and out -------------------------------------------------------------------------------------------------------


def test_a_record_comes_out_as_it_went_in_with_its_gaps(pair: Pair) -> None:
    assert pair.push(7, words(3))
    records = pair.reader.requests()
    told = dict(zip(NAMES, record_of(7), strict=True)) | {"gaps_end": 3}
    assert {name: int(records[name][0]) for name in NAMES} == told
    assert pair.reader.gaps(3).tolist() == [100, 101, 102]


def test_a_record_is_given_once(pair: Pair) -> None:
    pair.push(0)
    assert pair.read() == ([0], [])
    assert pair.read() == ([], [])
    pair.push(1)
    assert pair.read() == ([1], [])


def test_no_more_are_given_than_were_asked_for(pair: Pair) -> None:
    for number in range(4):
        pair.push(number)
    assert pair.reader.requests(3)["request"].tolist() == [0, 1, 2]
    assert pair.reader.requests(3)["request"].tolist() == [3]


def test_what_was_given_does_not_change_when_the_slot_is_written_again(pair: Pair) -> None:
    pair.push(0, words(64))
    first = pair.reader.requests()
    gaps = pair.reader.gaps(64)
    pair.reader.release()
    for number in range(1, 5):
        assert pair.push(number, words(16, start=900))
    check(first)
    assert gaps.tolist() == words(64).tolist()


def test_empty_gaps_are_as_none(pair: Pair) -> None:
    pair.push(0, array("Q"))
    pair.push(1, None)
    assert pair.read() == ([0, 1], [])


def test_a_tuple_of_values_is_as_good_as_a_list_and_is_not_changed(pair: Pair) -> None:
    values = record_of(5)
    before = list(values)
    pair.writer.push(tuple(values), words(2))
    pair.writer.push(values, words(2))
    assert values == before
    assert pair.read()[0] == [5, 5]


def test_a_value_that_does_not_fit_leaves_the_segment_as_it_was(pair: Pair) -> None:
    """Its gaps must not be in the lane either: the next record's crc runs over all since the last record."""
    pair.push(0, words(2))
    with pytest.raises(struct.error):
        pair.push(1, words(5), http_status=70_000)
    pair.push(2, words(3, start=500))
    assert pair.read() == ([0, 2], [100, 101, 500, 501, 502])
    assert pair.counter(Counter.GAP_DROPS) == pair.counter(Counter.REQUEST_DROPS) == 0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 20)),
            st.tuples(st.just("detail"), st.integers(0, DETAIL_MAX + 4)),
            st.tuples(st.just("read"), st.booleans()),
        ),
        max_size=80,
    )
)
def test_any_sequence_of_pushes_and_reads_gives_in_order_what_was_accepted(steps: list[tuple[str, int]]) -> None:
    with segments() as directory:
        pair = Pair(directory)
        accepted: list[int] = []
        accepted_gaps: list[int] = []
        details: list[bytes] = []
        seen: tuple[list[int], list[int]] = ([], [])
        seen_details: list[bytes] = []
        dropped = gaps_dropped = details_dropped = 0
        for number, (what, size) in enumerate([*steps, ("read", 1)]):
            if what == "push":
                gaps = words(size, start=number * 100)
                drops_before = pair.writer.counters[Counter.GAP_DROPS]
                if pair.push(number, gaps):
                    accepted.append(number)
                    if pair.writer.counters[Counter.GAP_DROPS] == drops_before:
                        accepted_gaps += gaps
                    else:
                        gaps_dropped += size
                else:
                    dropped += 1
                    gaps_dropped += size
            elif what == "detail":
                blob = bytes([number % 251]) * size
                if pair.writer.push_detail(blob):
                    details.append(blob)
                else:
                    details_dropped += 1
            else:
                for all_seen, new in zip(seen, pair.read(), strict=True):
                    all_seen.extend(new)
                seen_details += pair.reader.details()
                if size:
                    pair.reader.release()
        assert seen == (accepted, accepted_gaps)
        assert seen_details == details
        assert pair.reader.torn == 0
        assert pair.counter(Counter.REQUEST_DROPS) == dropped
        assert pair.counter(Counter.GAP_DROPS) == gaps_dropped
        assert pair.counter(Counter.DETAIL_DROPS) == details_dropped
        pair.close()


def test_a_ring_goes_round_many_times_also_with_gaps_across_the_edge(pair: Pair) -> None:
    start = 0
    for number in range(400):
        gaps = words(number % 41, start=start)
        assert pair.push(number, gaps)
        assert pair.read() == ([number], gaps.tolist())
        start += len(gaps)
        pair.reader.release()
    assert start > 50 * SMALL.gaps


@pytest.mark.parametrize("short_of", [1, 2, 3, 6])
def test_numbers_wrap_after_31_bits_without_a_gap(pair: Pair, short_of: int) -> None:
    """10k requests/s are there in 2.5 days. No commit word may look unwritten then, nor an unwritten one committed."""
    head = (1 << 31) - short_of
    pair.writer._request_head = pair.writer._detail_head = head
    pair.reader.seek((head, 0, head))
    pair.reader.release()
    for lap in range(4):
        numbers = list(range(lap * 3, lap * 3 + 3))
        assert all(pair.push(number, words(2)) for number in numbers)
        pair.writer.begin(0, numbers[-1], 1, record_of(numbers[-1])[NAMES.index("phase")], 0)
        assert all(pair.writer.push_detail(b"%d" % number) for number in numbers)
        assert pair.read()[0] == numbers
        assert pair.reader.details() == [b"%d" % number for number in numbers]
        assert pair.reader.leftovers() == []
        assert resume_point(pair.path)[1] == numbers[-1] + 1
        assert pair.read() == ([], [])
        pair.reader.release()
    assert (head + 12) & NUMBER_MASK < head & NUMBER_MASK


# --- full -------------------------------------------------------------------------------------------------------------


def test_a_full_ring_counts_what_it_drops(pair: Pair) -> None:
    outcomes = [Outcome.OK, Outcome.HTTP_SERVER, Outcome.OK]
    for number in range(SMALL.requests):
        assert pair.push(number, words(2))
    for phase in range(2):
        for target in range(3):
            for outcome in outcomes[: target + 1]:
                assert not pair.push(9, words(5), phase=phase, target=target, outcome=outcome)
    expected = np.zeros((6, OUTCOMES), np.uint64)
    for series in range(6):
        for outcome in outcomes[: series % 3 + 1]:
            expected[series, outcome] += 1
    np.testing.assert_array_equal(pair.reader.drops(), expected)
    assert pair.counter(Counter.REQUEST_DROPS) == pair.writer.counters[Counter.REQUEST_DROPS] == 12
    assert pair.counter(Counter.GAP_DROPS) == 12 * 5
    assert pair.read() == ([0, 1, 2, 3], [100, 101] * 4)


def test_what_was_read_is_not_overwritten_before_it_is_released(pair: Pair) -> None:
    for number in range(4):
        pair.push(number)
    assert pair.read()[0] == [0, 1, 2, 3]
    assert not pair.push(4)
    pair.reader.release()
    assert pair.push(5)
    assert pair.read()[0] == [5]


def test_a_full_gap_lane_drops_the_gaps_and_keeps_the_record(pair: Pair) -> None:
    assert pair.push(0, words(60))
    assert pair.push(1, words(5))  # 4 would fit
    assert pair.push(2, words(4, start=300))
    assert pair.counter(Counter.GAP_DROPS) == 5
    assert pair.counter(Counter.REQUEST_DROPS) == 0
    records = pair.reader.requests()
    assert records["gaps_end"].tolist() == [60, 60, 64]
    assert pair.reader.gaps(64).tolist() == [*words(60), *words(4, start=300)]


def test_more_gaps_than_the_lane_holds_are_dropped_whole(pair: Pair) -> None:
    assert pair.push(0, words(65))
    assert pair.push(1, words(64))
    assert pair.counter(Counter.GAP_DROPS) == 65
    assert pair.read() == ([0, 1], words(64).tolist())


def test_a_dropped_run_of_unsent_slots_counts_every_slot(pair: Pair) -> None:
    """planned = sent + unsent must hold also then."""
    for number in range(4):
        pair.push(number)
    assert not pair.writer.push(unsent_run(4, 250), None)
    assert pair.reader.drops()[3, Outcome.UNSENT] == 250
    assert pair.counter(Counter.REQUEST_DROPS) == 250


def test_a_drop_of_nobodys_target_is_counted_at_the_last_one(pair: Pair) -> None:
    for number in range(4):
        pair.push(number)
    pair.push(4, phase=1, target=NO_TARGET, outcome=Outcome.UNSENT)
    assert pair.reader.drops()[5, Outcome.UNSENT] == pair.reader.drops().sum() == 1


def test_details_that_find_no_room_or_are_too_long_are_counted(pair: Pair) -> None:
    assert not pair.writer.push_detail(b"x" * (DETAIL_MAX + 1))
    fitting = [b"", b"x" * DETAIL_MAX, b"\0" * 10, b"last"]
    assert all(pair.writer.push_detail(blob) for blob in fitting)
    assert not pair.writer.push_detail(b"fifth")
    assert pair.counter(Counter.DETAIL_DROPS) == 2
    assert pair.reader.details() == fitting
    assert pair.reader.details() == []


# --- bytes that are not whole -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(victim=st.integers(0, 2), place=st.integers(0, SLOT_BYTES - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_record_keeps_it_and_what_follows_unread(victim: int, place: int, bit: int) -> None:
    with segments() as directory:
        pair = Pair(directory)
        for number in range(3):
            pair.push(number, words(3))
        with pair.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            at = Layout(SMALL).requests + victim * SLOT_BYTES + place
            memory[at] ^= 1 << bit
            assert pair.read()[0] == list(range(victim))
            memory[at] ^= 1 << bit
            assert pair.read()[0] == list(range(victim, 3))
        pair.close()


def test_a_gap_that_is_not_there_yet_keeps_its_record_unread(pair: Pair) -> None:
    """As on a machine that shows the stores in another order."""
    pair.push(0, words(2))
    pair.push(1, words(5, start=200))
    with pair.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = Layout(SMALL).gaps + 6 * 8
        kept = memory[at : at + 8]
        memory[at : at + 8] = bytes(8)
        assert pair.read() == ([0], [100, 101])
        assert pair.reader.torn == 1
        memory[at : at + 8] = kept
        assert pair.read() == ([1], [200, 201, 202, 203, 204])


def test_a_slot_of_an_earlier_lap_is_not_a_new_record(pair: Pair) -> None:
    for number in range(SMALL.requests * 2):
        pair.push(number)
        pair.read()
        pair.reader.release()
    assert pair.read() == ([], [])
    assert pair.reader.torn == 0


def test_a_reader_goes_on_from_a_checkpoint_and_reads_again_what_was_not_in_it(pair: Pair) -> None:
    pair.push(0, words(3))
    pair.writer.push_detail(b"a")
    pair.read()
    pair.reader.details()
    saved = pair.reader.cursors()
    pair.reader.release()
    pair.push(1, words(2, start=200))
    pair.writer.push_detail(b"b")
    assert pair.read()[0] == [1]
    again = SegmentReader.open(pair.path)
    again.seek(saved)
    assert again.requests()["request"].tolist() == [1]
    assert again.gaps(5).tolist() == [200, 201]
    assert again.details() == [b"b"]
    assert again.cursors() == (2, 5, 2)
    again.close()


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_layout_says(pair: Pair) -> None:
    """Byte for byte, by nothing but the docstring of Layout."""
    pair.writer.counters[Counter.EVENTS] = 77
    pair.writer.lag[5] = 88
    pair.writer.begin(1, 41, 1000, 1, 2)
    pair.writer.sent(1, 2000)
    pair.push(6, words(1))
    pair.writer.push_detail(b"hello")
    pair.writer.ticks.start(1000, 10)
    pair.writer.ticks.of(4).gap(1024, 1075)
    raw = pair.path.read_bytes()
    u64 = struct.Struct("=Q").unpack_from
    assert struct.unpack_from("<8sIIII7Q", raw) == (b"LENSRING", 3, 0, 0, os.getpid(), *SMALL)
    assert u64(raw, 128)[0] == State.LIVE
    assert u64(raw, 4096 + 8 * Counter.EVENTS)[0] == 77
    assert u64(raw, 4096 + 8 * (64 + 5))[0] == 88
    table = 4096 + 8 * (64 + LAG_BUCKETS)
    assert struct.unpack_from("=4Q", raw, table + 32) == (42 << 1 | 1, 1000, 2000, 1 << 16 | 2)
    requests, gaps, details = 3 * PAGE, 4 * PAGE, 5 * PAGE
    assert (table + 4 * 32 + 6 * OUTCOMES * 8) // PAGE == 2  # so that the request lane begins at page 3
    assert u64(raw, requests)[0] & 0xFFFF_FFFF == 1 << 31 | 1
    assert u64(raw, requests + 8)[0] == 6
    assert u64(raw, gaps)[0] == 100
    assert u64(raw, details)[0] & 0xFFFF_FFFF == 1 << 31 | 1
    assert u64(raw, details + 8)[0] == 5
    assert raw[details + 16 : details + 21] == b"hello"
    assert u64(raw, 6 * PAGE)[0] == (7 + 1) << 16 | 4
    assert struct.unpack_from("=I", raw, 7 * PAGE + 320 * 4)[0] == 1
    assert len(raw) == 7 * PAGE + page_up(SMALL.ticks * ROW_BYTES)
    pair.reader.requests()
    pair.reader.gaps(1)
    pair.reader.release()
    assert struct.unpack_from("=3Q", pair.path.read_bytes(), 256) == (1, 1, 0)


def test_a_segment_tells_who_wrote_it(directory: Path) -> None:
    writer = SegmentWriter.create(directory / "x.ring", HAMMERED, worker=5, incarnation=2)
    reader = SegmentReader.open(directory / "x.ring")
    assert (reader.worker, reader.incarnation, reader.pid, reader.geometry) == (5, 2, os.getpid(), HAMMERED)
    assert reader.state is State.LIVE
    writer.close()
    assert reader.state is State.DONE  # type: ignore[comparison-overlap]  # another process' store
    mark_dead(directory / "x.ring")
    assert reader.state is State.DEAD
    reader.close()


def test_nobody_but_the_owner_may_read_the_file(pair: Pair) -> None:
    assert pair.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("part", ["requests", "gaps", "details"])
@pytest.mark.parametrize("size", [0, 3, -4, 1000])
def test_sizes_are_powers_of_two(directory: Path, part: str, size: int) -> None:
    with pytest.raises(SegmentError, match=f"{part} must be a power of two, got {size}"):
        SegmentWriter.create(directory / "x", SMALL._replace(**{part: size}), worker=0)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"LENSRING", "too short"),
        (bytes(8192), "not a ring segment"),
        (struct.pack("<8sIIII7Q", b"LENSRING", 99, 0, 0, 1, *SMALL) + bytes(4096), "not a ring segment of version 3"),
        (
            struct.pack("<8sIIII7Q", b"LENSRING", 3, 0, 0, 1, *SMALL) + bytes(4096),
            f"its head says {7 * PAGE + SMALL.ticks * ROW_BYTES}",
        ),
    ],
    ids=["empty", "cut", "zeros", "another version", "cut after the head"],
)
def test_a_file_that_is_no_segment_is_refused(directory: Path, content: bytes, message: str) -> None:
    path = directory / "x.ring"
    path.write_bytes(content)
    with pytest.raises(SegmentError, match=message):
        SegmentReader.open(path)


def test_a_segment_that_is_not_there_is_a_missing_file(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SegmentReader.open(directory / "x.ring")


def test_a_missing_directory_is_named(directory: Path) -> None:
    with pytest.raises(SegmentError, match=r"cannot make the ring segment .*/nowhere/x: No such file or directory"):
        SegmentWriter.create(directory / "nowhere" / "x", SMALL, worker=0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def test_a_full_tmpfs_is_an_error_that_says_how_much_is_needed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(SegmentError, match=r"no room for a ring segment of 1\.3 MB .*remount,size=.* fewer workers"):
        SegmentWriter.create(directory / "x", HAMMERED, worker=0)
    assert list(directory.iterdir()) == []


def test_any_other_refusal_is_told_as_it_is(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(SegmentError, match=r"cannot make the ring segment .*: Input/output error"):
        SegmentWriter.create(directory / "x", HAMMERED, worker=0)
    assert list(directory.iterdir()) == []


def test_a_limit_of_the_file_size_is_met_at_the_start_and_not_by_a_signal_later(directory: Path) -> None:
    """RLIMIT_FSIZE stands for a tmpfs that is too small: both refuse posix_fallocate."""
    program = (
        "import resource, sys; from pathlib import Path; from llm_latency_lens.engine.records.layout import Geometry;"
        "from llm_latency_lens.engine.records.writer import SegmentWriter;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "SegmentWriter.create(Path(sys.argv[1]), Geometry(1 << 16, 16, 16, 16, 1, 1), worker=0)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(directory / "x.ring")], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "no room for a ring segment of 17.9 MB (File too large)" in told.stderr.splitlines()[-1]
    assert list(directory.iterdir()) == []


def test_trim_takes_the_lanes_out_of_the_process_and_leaves_the_data(directory: Path) -> None:
    geometry = Geometry(1 << 13, 1 << 16, 16, 4, 1, 1)
    pair = Pair(directory, geometry)
    for number in range(geometry.requests):
        assert pair.push(number, words(8))
    assert mapped_bytes(pair.path) > geometry.requests * SLOT_BYTES
    pair.writer.trim()
    assert mapped_bytes(pair.path) < 20 * PAGE
    numbers, gaps = pair.read()
    assert numbers == list(range(geometry.requests))
    assert gaps == words(8).tolist() * geometry.requests
    assert mapped_bytes(pair.path) > geometry.requests * SLOT_BYTES
    pair.reader.release()  # which lets go of what it read
    assert mapped_bytes(pair.path) < 20 * PAGE
    assert pair.push(geometry.requests, words(8))
    assert pair.read() == ([geometry.requests], words(8).tolist())
    pair.close()


def mapped_bytes(path: Path) -> int:
    """The resident part of all mappings of a file in this process."""
    total, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            mine = line.endswith(str(path))
        elif mine and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


# --- in flight --------------------------------------------------------------------------------------------------------


def test_what_is_in_flight_is_left_over_with_what_is_known_of_it(pair: Pair) -> None:
    pair.writer.begin(0, 5, 100, 0, 1)
    pair.writer.begin(3, 6 | 2 << TURN_SHIFT, 200, 1, NO_TARGET)
    pair.writer.sent(3, 250)
    pair.writer.begin(1, 7, 300, 0, 0)
    pair.writer.clear(1)
    assert pair.reader.leftovers() == [
        Leftover(5, 100, 0, 0, 1, 0, False),
        Leftover(6 | 2 << TURN_SHIFT, 200, 250, 1, NO_TARGET, 3, True),
    ]


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "unread"])
@pytest.mark.parametrize("full", [False, True], ids=["committed", "dropped"])
def test_a_request_that_was_told_but_not_cleared_is_not_left_over(pair: Pair, full: bool, drained: bool) -> None:
    for number in range(1, 1 + SMALL.requests * full):
        pair.push(number)
    pair.writer.begin(2, 9, 100, 1, 1)
    pair.writer.begin(3, 10, 100, 1, 1)
    assert pair.push(9, phase=1, target=1) != full
    if drained:
        pair.reader.requests()
    assert [left.request for left in pair.reader.leftovers()] == [10]


def test_the_same_request_number_of_another_phase_is_another_request(pair: Pair) -> None:
    pair.push(9, phase=0)
    pair.writer.begin(2, 9, 100, 1, 1)
    assert [(left.request, left.phase) for left in pair.reader.leftovers()] == [(9, 1)]


def test_a_request_taken_back_unsent_is_told_though_its_record_names_no_place(pair: Pair) -> None:
    pair.writer.begin(2, 9, 100, 1, 1)
    pair.writer.push(unsent_run(9, 1), None)
    assert pair.reader.leftovers() == []


def test_a_place_is_used_again(pair: Pair) -> None:
    for number in range(10):
        pair.writer.begin(0, number, number, 0, 0)
        pair.writer.sent(0, number + 1)
        pair.push(number)
        pair.writer.clear(0)
    pair.writer.begin(0, 10, 10, 0, 0)
    assert pair.reader.leftovers() == [Leftover(10, 10, 0, 0, 0, 0, False)]


RESUME = [
    ("nothing was done", (0, 0), lambda w: None),
    ("the counter alone", (1, 12), lambda w: w.counters.__setitem__(0, 1 << PHASE_SHIFT | 12)),
    ("in flight, the counter not yet written", (1, 31), lambda w: w.begin(2, 30, 0, 1, 0)),
    ("a later turn is of its session's slot", (0, 31), lambda w: w.begin(2, 30 | 4 << TURN_SHIFT, 0, 0, 0)),
    ("one slot unsent, the counter not yet written", (1, 8), lambda w: w.push(unsent_run(7, 1), None)),
    ("the rest of a share unsent", (1, SLOT_MASK), lambda w: w.push(unsent_run(7, 50), None)),
    ("that, dropped", (1, SLOT_MASK), lambda w: [w.push(unsent_run(7, 50 - i, phase=i == 4), None) for i in range(5)]),
    ("the furthest of all counts", (1, 31), lambda w: (w.begin(0, 30, 0, 1, 0), w.push(unsent_run(7, 1), None))),
]


@pytest.mark.parametrize(("point", "act"), [row[1:] for row in RESUME], ids=[row[0] for row in RESUME])
def test_a_successor_goes_on_after_the_last_slot_that_is_in_any_book(
    pair: Pair, point: tuple[int, int], act: Any
) -> None:
    act(pair.writer)
    assert resume_point(pair.path) == point
    pair.reader.requests()
    pair.reader.release()
    assert resume_point(pair.path) == point


# --- lag --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 43) - 1))
def test_a_lag_is_at_most_its_buckets_value_and_above_the_one_before(ns: int) -> None:
    bucket = lag_bucket(ns)
    assert bucket == 0 or lag_value(bucket - 1) < ns
    assert ns <= lag_value(bucket) <= ns * 1.0625


def test_every_bucket_is_used_and_in_order() -> None:
    assert [lag_bucket(lag_value(bucket)) for bucket in range(LAG_BUCKETS)] == list(range(LAG_BUCKETS))


def test_lags_beyond_the_ends_are_in_the_first_and_last_bucket() -> None:
    assert lag_bucket(-5) == 0
    assert lag_bucket(1 << 60) == LAG_BUCKETS - 1


def test_the_reader_sees_the_lag_counts(pair: Pair) -> None:
    pair.writer.lag[lag_bucket(12_000)] += 3
    counts = pair.reader.lag()
    assert counts.sum() == counts[lag_bucket(12_000)] == 3


# --- two processes ----------------------------------------------------------------------------------------------------


def test_a_reader_beside_a_writer_at_full_speed_sees_only_whole_records_and_every_one(directory: Path) -> None:
    """What is not read was dropped: the counts of both, by series and outcome, are those of all that was pushed."""
    pushed, path = 40_000, directory / "worker-3.1.ring"
    with subprocess.Popen([sys.executable, str(SCRIPT), "hammer", str(path), str(pushed)]) as child:
        while not path.exists():
            assert child.poll() is None
        reader = SegmentReader.open(path)
        numbers: list[int] = []
        details: list[bytes] = []
        over = False
        while not over:
            over = reader.state is State.DONE
            assert over or child.poll() in (None, 0)
            while len(records := reader.requests(200)):
                check(records)
                new = records["request"].tolist()
                check_gaps(records, reader, kept_from=len(numbers))
                numbers += new
                details += reader.details()
                reader.release()
    assert child.returncode == 0
    assert reader.torn == 0
    assert np.all(np.diff(numbers) > 0)
    missing = np.setdiff1d(np.arange(pushed), numbers)
    expected = np.zeros((6, OUTCOMES), np.uint64)
    for number in missing.tolist():
        told = EXPECTED[number % TEMPLATES]
        expected[int(told["phase"]) * 3 + int(told["target"]), int(told["outcome"])] += 1
    np.testing.assert_array_equal(reader.drops(), expected)
    counters = reader.counters()
    assert counters[Counter.REQUEST_DROPS] == len(missing)
    assert len(numbers) > 1000
    kept_gaps = reader.cursors()[1]
    assert kept_gaps + counters[Counter.GAP_DROPS] == sum(number % 23 for number in range(pushed))
    assert set(details) <= {detail_of(number) for number in range(0, pushed, 16)}
    assert len(details) + counters[Counter.DETAIL_DROPS] == -(-pushed // 16)
    reader.close()


def check_gaps(records: np.ndarray[Any, Any], reader: SegmentReader, *, kept_from: int) -> None:
    """Each record has its own gaps, all of them, or none where the gap lane was full."""
    before = reader.cursors()[1]
    words = reader.gaps(int(records["gaps_end"][-1]))
    counts = np.diff(records["gaps_end"].astype(np.int64), prepend=before)
    full = records["request"].astype(np.int64) % 23
    assert np.all((counts == full) | (counts == 0)), kept_from
    owner = np.repeat(records["request"], counts)
    place = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    np.testing.assert_array_equal(words, (owner << np.uint64(5)) + place.astype(np.uint64))


def test_every_field_of_a_record_is_in_the_check(pair: Pair) -> None:
    """The check above must see one wrong bit in any field, or it shows nothing."""
    pair.push(3)
    records = pair.reader.requests()
    for name, _ in FIELDS:
        if name not in ("request", "gaps_end"):
            wrong = records.copy()
            wrong[name] ^= 1
            with pytest.raises(AssertionError):
                check(wrong)
    assert records.dtype == record_dtype()
    check(records)
    assert values_of(3)[0] == 3
    assert gaps_of(24).tolist() == [24 << 5]
