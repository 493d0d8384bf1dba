"""Random bytes in a segment file: the reader refuses it or reads what was written, and never anything else."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.collectors.checkpoint import Progress
from llm_latency_lens.collectors.intake import Drained, Intake
from llm_latency_lens.collectors.live import LiveTicks
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.engine.errors import SegmentError
from llm_latency_lens.engine.records.layout import MAGIC, PAGE, VERSION, Counter, Layout
from llm_latency_lens.engine.records.reader import SegmentReader
from llm_latency_lens.engine.records.resume import budget_left, mark_dead, resume_point
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_ring import KILLED, detail_of, gaps_of, values_of

LAYOUT = Layout(KILLED)
RECORDS = 40
DETAILS = [detail_of(1), detail_of(2)]
NAME = "worker-0.0.ring"
PLACES = st.one_of(
    st.integers(0, 256 + 24),  # head, state, journal, tails
    st.integers(PAGE, PAGE + 200),  # counters
    st.integers(LAYOUT.inflight_word * 8, LAYOUT.requests),  # requests in flight, drops
    st.integers(LAYOUT.requests, LAYOUT.size - 1),  # the lanes
)
PATCHES = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=600)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def sound() -> Iterator[Path]:
    """A segment with records, gaps, details, requests in flight and a death in the middle."""
    with tempfile.TemporaryDirectory() as directory:
        writer = SegmentWriter.create(Path(directory) / NAME, KILLED, worker=0)
        for blob in DETAILS:
            writer.push_detail(blob)
        for number in range(RECORDS):
            writer.push(values_of(number), gaps_of(number))
        writer.begin(1, RECORDS, 7, 1, 0)
        writer.sent(1, 8)
        writer.begin(2, RECORDS + 1, 7, 1, 2)
        writer.counters[Counter.NEXT_SLOT] = RECORDS + 2
        yield Path(directory) / NAME


def drained(content: bytes, *, dead: bool = True) -> tuple[list[Drained], list[Drained]]:
    """What the collector's intake makes of this segment: what was committed, and what a dead worker left behind."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / NAME
        path.write_bytes(content)
        if dead and reads(path):
            mark_dead(path)
            resume_point(path)
            budget_left(path)
        intake = Intake(Path(directory), Progress())
        intake.scan()
        found = list(intake.drain(finished=True))
        left = [found.pop()] if found and intake.done else []
        live = LiveTicks(KILLED.targets, Progress())
        live.read(intake.segments, 0, 3)
        live.fold(3)
        live.close(3, Slab())
        intake.lag()
        state = Progress()
        intake.save(state)
        live.save(state)
        live.release(intake.segments)
        intake.release()
        assert intake.done or not dead
        return found, left


def reads(path: Path) -> bool:
    try:
        SegmentReader.open(path).close()
    except SegmentError:
        return False
    return True


def patched(content: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    made = bytearray(content)
    for place, piece in patches:
        made[place : place + len(piece)] = piece
    return bytes(made[: len(content)])


def test_the_sound_segment_gives_everything(sound: Path) -> None:
    [committed], [left] = drained(sound.read_bytes())
    assert committed.records["request"].tolist() == list(range(RECORDS))
    assert left.records["request"].tolist() == [RECORDS, RECORDS + 1]
    assert committed.details == DETAILS


@given(patches=PATCHES, dead=st.booleans())
def test_random_bytes_anywhere_crash_nothing_and_invent_no_record(
    sound: Path, patches: list[tuple[int, bytes]], dead: bool
) -> None:
    [written], _ = drained(sound.read_bytes())
    committed, left = drained(patched(sound.read_bytes(), patches), dead=dead)
    for read in committed:
        assert read.records.tobytes() == written.records[: len(read.records)].tobytes()
    assert all(blob in DETAILS for read in committed + left for blob in read.details)
    assert all(row["phase"] < KILLED.phases for read in left for row in read.records)


SIZES = st.tuples(*[st.one_of(st.sampled_from([0, 1, 2, 64, 1 << 20, 1 << 63]), st.integers(0, (1 << 64) - 1))] * 6)


@given(sizes=SIZES, rest=st.binary(max_size=2 * PAGE))
def test_a_file_whose_head_lies_is_refused(sizes: tuple[int, ...], rest: bytes) -> None:
    assert drained(struct.pack("<8sIIII6Q", MAGIC, VERSION, 0, 0, 0, *sizes) + rest) == ([], [])


@given(content=st.binary(max_size=2 * PAGE))
def test_random_files_are_refused(content: bytes) -> None:
    assert drained(content) == ([], [])


@given(length=st.integers(0, LAYOUT.size - 1))
def test_a_segment_that_was_cut_short_is_refused(sound: Path, length: int) -> None:
    assert drained(sound.read_bytes()[:length]) == ([], [])
