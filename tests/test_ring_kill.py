"""A writer killed at any moment: every committed record is complete, none is missing, and every request is reported once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from llm_latency_lens.engine.records import writer
from llm_latency_lens.engine.records.layout import PHASE_SHIFT, SLOT_MASK, Counter, Geometry
from llm_latency_lens.engine.records.reader import SegmentReader
from llm_latency_lens.engine.records.record import Outcome
from llm_latency_lens.engine.records.resume import resume_point
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_ring import (
    BEGUN,
    NAMES,
    PHASE,
    STARTING,
    TEMPLATES,
    gaps_of,
    record_of,
    segments,
    unsent_run,
)

SCRIPT = Path(__file__).with_name("support_ring.py")
KILLS = 200
PER_RUN = 50
DEADLINE_S = 60.0
EXPECTED = np.array([tuple(record_of(number)) for number in range(TEMPLATES)], np.dtype([(n, "<u8") for n in NAMES]))


class Reading:
    """What a collector reads from a segment, checked as it comes."""

    def __init__(self, path: Path, gaps: Callable[[int], array[int]] = gaps_of) -> None:
        self.reader = SegmentReader.open(path)
        self.path = path
        self.gaps = gaps
        self.reported: list[int] = []

    def drain(self) -> None:
        before = self.reader.cursors()[1]
        records = self.reader.requests()
        if not len(records):
            return
        words = self.reader.gaps(int(records["gaps_end"][-1])).tolist()
        expected = EXPECTED[records["request"] % TEMPLATES]
        for name in set(NAMES) - {"request", "gaps_end"}:
            np.testing.assert_array_equal(records[name], expected[name], err_msg=name)
        at = 0
        for number, end in zip(records["request"].tolist(), (records["gaps_end"] - before).tolist(), strict=True):
            assert words[at:end] in (self.gaps(number).tolist(), []), number  # all, or none where they found no room
            at = end
        self.reported += records["request"].tolist()

    def close(self) -> tuple[list[int], int, list[int]]:
        """Drains the rest; (reported by a record, number of dropped, left over)."""
        self.drain()
        left = self.reader.leftovers()
        for entry in left:
            assert (entry.intended_ns, entry.phase, entry.target) == (
                entry.request,
                PHASE,
                entry.request % TEMPLATES % 3,
            )
            assert not entry.sent or entry.send_ns == entry.request + 7
        assert self.reader.torn == 0
        drops = int(self.reader.drops().sum())
        self.reader.close()
        return self.reported, drops, [entry.request for entry in left]


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that forks a writer per line: 2 ms each instead of an interpreter's start."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(DEADLINE_S) == 0


@pytest.mark.slow
@pytest.mark.parametrize("run", range(KILLS // PER_RUN))
def test_after_a_sigkill_at_any_moment_every_request_is_told_once(forks: subprocess.Popen[str], run: int) -> None:
    """begun = committed + dropped + left over, by number; the successor goes on right behind them."""
    assert forks.stdin is not None
    assert forks.stdout is not None
    draw = random.Random(run)
    told_in_all = dropped_in_all = 0
    with segments() as directory:
        for kill in range(PER_RUN):
            path = directory / f"worker-{run}.{kill}.ring"
            print(path, file=forks.stdin, flush=True)
            pid = int(forks.stdout.readline())
            reading = beside_until(path, draw.randrange(1500), lazy=draw.random() < 0.5)
            os.kill(pid, signal.SIGKILL)
            assert int(forks.stdout.readline()) == signal.SIGKILL
            reported, dropped = audit(reading)
            told_in_all, dropped_in_all = told_in_all + reported, dropped_in_all + dropped
    assert told_in_all > 0
    assert dropped_in_all > 0


def beside_until(path: Path, begun: int, *, lazy: bool) -> Reading:
    """Reads beside the writer until it has begun so many requests; a lazy reader lets the ring fill up."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline
    reading = Reading(path)
    while (now := reading.reader.counters()[BEGUN]) < begun:
        assert time.monotonic() < deadline
        if not lazy or now % 512 < 256:
            reading.drain()
            reading.reader.release()
    return reading


def audit(reading: Reading) -> tuple[int, int]:
    """(records, drops) of a segment whose writer was killed."""
    counters = reading.reader.counters()
    begun, starting = counters[BEGUN], counters[STARTING]
    resumed = resume_point(reading.path)
    reported, dropped, left = reading.close()
    if starting > begun and begun in left:  # killed between the entry and the counter that says so
        begun += 1
    assert starting - begun in (0, 1)
    assert len(set(reported)) == len(reported)
    assert not set(reported) & set(left)
    assert len(set(left)) == len(left)
    assert set(reported) | set(left) <= set(range(begun))
    assert len(reported) + dropped + len(left) == begun
    assert resumed[1] <= begun
    assert resumed[1] > max(left, default=-1)
    return len(reported), dropped


# --- every moment there is --------------------------------------------------------------------------------------------
# Every store is one bytecode of the writer. What a kill between two of them leaves behind is what is there then.

TINY = Geometry(requests=2, gaps=8, details=2, inflight=3, phases=2, targets=3)


def few_gaps(number: int) -> array[int]:
    return array("Q", range(number * 10, number * 10 + (0, 3, 6, 2)[number % 4]))


class Scenario:
    """One incarnation of a worker, with ends out of order, a full gap lane, a full ring and a reader that makes room in between."""

    def __init__(self, writer: SegmentWriter, reading: Reading) -> None:
        self.writer, self.reading = writer, reading
        self.starting = self.begun = self.ending = self.ended = 0

    def begin(self, place: int, number: int) -> None:
        self.starting += 1
        self.writer.begin(place, number, number, PHASE, number % TEMPLATES % 3)
        self.begun += 1
        self.writer.counters[Counter.NEXT_SLOT] = PHASE << PHASE_SHIFT | number + 1
        self.writer.sent(place, number + 7)

    def end(self, place: int, number: int) -> None:
        self.ending += 1
        self.writer.push_detail(b"about %d" % number)
        self.writer.push(record_of(number), few_gaps(number))
        self.writer.clear(place)
        self.ended += 1

    def live(self) -> None:
        self.begin(0, 0)
        self.begin(1, 1)
        self.end(1, 1)
        self.begin(2, 2)
        self.end(2, 2)  # its gaps find no room
        self.begin(1, 3)
        self.end(0, 0)  # dropped
        self.reading.drain()
        self.reading.reader.release()
        self.end(1, 3)
        self.begin(0, 4)
        self.begin(1, 5)
        self.end(1, 5)
        self.end(0, 4)  # dropped


def at_every_moment(live: Callable[[], object], look: Callable[[], None]) -> int:
    """Runs `live` and calls `look` before each bytecode of SegmentWriter, and at the end. Gives their number."""
    moments = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal moments
        if event == "call":
            code = frame.f_code
            if code.co_filename != writer.__file__ or not code.co_qualname.startswith("SegmentWriter."):
                return None
            frame.f_trace_opcodes = True
        elif event == "opcode":
            moments += 1
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        live()
    finally:
        sys.settrace(before)
    look()
    return moments


def test_killed_between_any_two_steps_every_request_is_told_once() -> None:
    with segments() as directory:
        path = directory / "worker-0.0.ring"
        scenario = Scenario(SegmentWriter.create(path, TINY, worker=0), Reading(path, few_gaps))
        seen: dict[tuple[bytes, int], tuple[list[int], int, list[int]]] = {}
        states: list[tuple[list[int], int, list[int]]] = []

        def look() -> None:
            key = (path.read_bytes(), len(scenario.reading.reported))
            if key not in seen:
                seen[key] = reported_after_a_kill(scenario.reading)
                states.append(seen[key])
            reported, dropped, left = seen[key]
            assert scenario.begun <= len(reported) + dropped + len(left) <= scenario.starting
            assert scenario.ended <= len(reported) + dropped <= scenario.ending

        assert at_every_moment(scenario.live, look) > 1000
        scenario.reading.close()
    assert len(states) > 50
    assert (sorted(states[-1][0]), *states[-1][1:]) == ([1, 2, 3, 5], 2, [])


def reported_after_a_kill(reading: Reading) -> tuple[list[int], int, list[int]]:
    """What a collector that goes on from its checkpoint makes of the segment as it is."""
    resumed = resume_point(reading.path)
    successor = Reading(reading.path, few_gaps)
    successor.reader.seek(reading.reader.cursors())
    successor.reported = list(reading.reported)
    counted = successor.reader.counters()[Counter.REQUEST_DROPS]
    reported, dropped, left = successor.close()
    in_books = len(reported) + dropped + len(left)
    assert len({*reported, *left}) == len(reported) + len(left)
    assert resumed == ((PHASE, in_books) if in_books else (0, 0))
    assert counted == dropped
    return reported, dropped, left


@pytest.mark.parametrize("full", [False, True], ids=["committed", "dropped"])
def test_killed_at_any_step_of_telling_the_rest_of_a_share_unsent_it_is_told_once(full: bool) -> None:
    """By the one that was killed, or by its successor."""
    with segments() as directory:
        path = directory / "worker-0.0.ring"
        writer = SegmentWriter.create(path, TINY, worker=0)
        for number in range(TINY.requests * full):
            writer.push(record_of(number), None)
        writer.counters[Counter.NEXT_SLOT] = PHASE << PHASE_SHIFT | 2
        seen: list[int] = []

        def look() -> None:
            reader = SegmentReader.open(path)
            records = reader.requests()
            run = records["slots"][(records["outcome"] == Outcome.UNSENT) & (records["slots"] > 1)]
            seen.append(int(run.sum()) + int(reader.drops()[:, Outcome.UNSENT].sum()))
            reader.close()
            assert resume_point(path) == (PHASE, SLOT_MASK if seen[-1] else 2)

        at_every_moment(lambda: writer.push(unsent_run(2, 40), None), look)
    assert seen == sorted(seen)
    assert set(seen) == {0, 40}
