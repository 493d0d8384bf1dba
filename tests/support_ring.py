"""Records that prove themselves, and the processes that write them for the ring's tests.

Run as a script it is a writer: `hammer PATH COUNT` pushes and ends, `forks` forks a child per line of stdin (a path)
that works until it is killed. Imports neither numpy nor pytest, so that a writer is up in 30 ms.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_latency_lens.engine.records.layout import PHASE_SHIFT, Counter, Geometry
from llm_latency_lens.engine.records.record import FIELDS, OUTCOMES, UNKNOWN, Outcome, Unsent
from llm_latency_lens.engine.records.writer import SegmentWriter

WIDTHS = {"Q": 64, "I": 32, "H": 16, "B": 8}
NAMES = [name for name, _ in FIELDS]
TEMPLATES = 509  # prime: no power of two of the ring's sizes divides it
HAMMERED = Geometry(requests=512, gaps=4096, details=32, inflight=8, phases=2, targets=3)
KILLED = Geometry(requests=64, gaps=512, details=8, inflight=8, phases=2, targets=3)
PHASE = 1  # of all of them: a share goes on within one
STARTING, BEGUN = 62, 63  # counters of the killed writer: requests it was about to begin, and has begun


def record_of(number: int) -> list[int]:
    """All fields of record `number`, each filled to its width with what only this template has; `gaps_end` is 0."""
    template = number % TEMPLATES
    values = [
        ((template + 1) * (2 * place + 1) * 0x9E37_79B9_7F4A_7C15 & (1 << 64) - 1) >> 64 - WIDTHS[code]
        for place, (_, code) in enumerate(FIELDS)
    ]
    own = {
        "request": number,
        "gaps_end": 0,
        "slots": 1,
        "target": template % HAMMERED.targets,
        "phase": PHASE,
        "outcome": template % OUTCOMES,
    }
    for name, value in own.items():
        values[NAMES.index(name)] = value
    return values


RECORDS = [record_of(number) for number in range(TEMPLATES)]


def values_of(number: int) -> list[int]:
    values = RECORDS[number % TEMPLATES]
    values[0] = number
    return values


def gaps_of(number: int) -> array[int]:
    """0 to 22 words that no other record has."""
    return array("Q", range(number << 5, (number << 5) + number % 23))


def detail_of(number: int) -> bytes:
    return b"%d " % number * (number % 40)


def unsent_run(first: int, slots: int, *, phase: int = PHASE) -> list[int]:
    """A record for `slots` slots from `first` on that were not sent."""
    values = {"request": first, "slots": slots, "phase": phase, "inflight_slot": UNKNOWN}
    values |= {"outcome": Outcome.UNSENT, "unsent": Unsent.STOPPED}
    return [values.get(name, 0) for name in NAMES]


@contextmanager
def segments() -> Iterator[Path]:
    """A directory on tmpfs that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="lens-test-ring-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def hammer(path: Path, count: int) -> None:
    """Pushes `count` records as fast as it can, every 16th with a detail; what finds the ring full is dropped."""
    writer = SegmentWriter.create(path, HAMMERED, worker=3, incarnation=1)
    for number in range(count):
        if not number % 16:
            writer.push_detail(detail_of(number))
        if not writer.push(values_of(number), gaps_of(number)):
            os.sched_yield()  # or nearly everything would be dropped
        if not number % 1000:
            writer.trim()
    writer.close()


def live_until_killed(path: Path) -> None:
    """Begins, sends and ends requests out of order, as a worker does, for ever."""
    draw = random.Random(path.name)
    writer = SegmentWriter.create(path, KILLED, worker=0)
    counters = writer.counters
    free, running = list(range(KILLED.inflight)), []
    number = 0
    while True:
        if free and draw.random() < 0.6:
            slot = free.pop()
            counters[STARTING] = number + 1
            writer.begin(slot, number, number, PHASE, number % TEMPLATES % KILLED.targets)
            counters[BEGUN] = number + 1
            counters[Counter.NEXT_SLOT] = PHASE << PHASE_SHIFT | number + 1
            running.append((slot, number))
            number += 1
        elif running:
            slot, ended = running.pop(draw.randrange(len(running)))
            writer.sent(slot, ended + 7)
            writer.push(values_of(ended), gaps_of(ended))
            writer.clear(slot)
            free.append(slot)


def forks() -> None:
    """For each path on stdin: forks a writer, says its pid, waits for its end and says the signal that ended it."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            live_until_killed(Path(line.strip()))
        print(pid, flush=True)
        print(-os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    signal.alarm(100)  # no writer outlives its test
    if sys.argv[1] == "hammer":
        hammer(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        forks()
