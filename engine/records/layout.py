"""The format of a ring segment in shared memory: how records leave a worker and survive its SIGKILL.

One plain file on tmpfs per incarnation of a worker, mmapped by one writer (the worker, records.writer) and one reader
(the collector, records.reader). Not `multiprocessing.shared_memory`: when its creator is killed, its tracker deletes
the segment.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from ..errors import SegmentError
from .lag import LAG_BUCKETS
from .record import FIELDS, OUTCOMES, PAYLOAD_BYTES, SLOT_BYTES
from .ticks import ROW_BYTES

MAGIC: Final = b"LENSRING"
VERSION: Final = 3
PAGE: Final = 4096
DETAIL_BYTES: Final = 512
WORKER_MAX: Final = (1 << 16) - 1  # what a record holds of it
PID_MAX: Final = (1 << 31) - 1
DETAIL_MAX: Final = DETAIL_BYTES - 16
ENTRY_WORDS: Final = 4
COMMITTED: Final = 1 << 31
NUMBER_MASK: Final = COMMITTED - 1
SEQUENCE_MASK: Final = COMMITTED | NUMBER_MASK
TURN_SHIFT: Final = 40  # a request number is slot | turn << TURN_SHIFT
SLOT_MASK: Final = (1 << TURN_SHIFT) - 1
TURN_MAX: Final = (1 << 16) - 1  # what a record holds
PHASE_SHIFT: Final = 48  # of the NEXT_SLOT counter: phase above, slot below

HEAD: Final = struct.Struct("<8sIIII7Q")
STATE_WORD: Final = 16  # words of 8 bytes from the start of the file; each owner's words on a cache line of their own
JOURNAL_WORDS: Final = 24
TAIL_WORDS: Final = 32
BOUND_WORDS: Final = 36  # closed, released
LEFT_WORD: Final = 40
COUNTER_WORDS: Final = PAGE // 8
COUNTERS: Final = 64
LAG_WORDS: Final = COUNTER_WORDS + COUNTERS
TABLE_WORDS: Final = LAG_WORDS + LAG_BUCKETS
_INDEX_OF: Final = {name: index for index, (name, _) in enumerate(FIELDS)}
# Indices of a record's fields, for those who have no numpy.
REQUEST: Final = _INDEX_OF["request"]
GAPS_END: Final = _INDEX_OF["gaps_end"]
SLOTS: Final = _INDEX_OF["slots"]
TARGET: Final = _INDEX_OF["target"]
PHASE: Final = _INDEX_OF["phase"]
OUTCOME: Final = _INDEX_OF["outcome"]


class State(IntEnum):
    """Whose turn a segment is: written, closed by its worker, or orphaned by its death (marked by the supervisor)."""

    LIVE = 1
    DONE = 2
    DEAD = 3


class Counter(IntEnum):
    """The live counters of a worker, each one aligned u64. Totals since its start unless the name says otherwise."""

    NEXT_SLOT = 0  # phase << PHASE_SHIFT | slot: where a successor goes on
    EVENTS = 1
    STALE_RESENDS = 2
    GC_PAUSES = 3
    CLOCK_STEPS = 4
    CPU_NS = 5
    CPU_MEASURED_NS = 6
    EVENTS_MEASURED = 7
    HEARTBEAT_NS = 8  # CLOCK_MONOTONIC, of the last heartbeat
    REQUEST_DROPS = 9  # slots whose record found the lane full; the reader's is the sum of the drop table
    GAP_DROPS = 10
    GAPS_SATURATED = 11
    DETAIL_DROPS = 12
    LATE_RENDERS = 13
    CLOCK_BRACKET_NS = 14  # width of the mapping of kernel stamps to CLOCK_MONOTONIC, now
    BUDGET_LEFT = 15  # pico-USD + 1, 0 where there is no budget: what a successor may still spend
    MEASURED_NS = 16  # wall time in which CPU_MEASURED_NS was used
    QUEUE_WAIT_NS = 17  # ready to run and without a CPU
    QUEUE_WAIT_MEASURED_NS = 18
    STOPPED_MEASURED_NS = 19  # in stops of the loop longer than STOP_NS (worker/health.py)
    GC_NS = 20  # in garbage collections
    STALLED_NS = 21  # in stops of the loop longer than STALL_NS that neither a wait for a CPU nor GC explains


class Geometry(NamedTuple):
    """Sizes of a segment's parts in slots; the first three are powers of two."""

    requests: int
    gaps: int
    details: int
    inflight: int
    phases: int
    targets: int
    ticks: int = 64  # rows of a series in a tick


class Layout:
    """The format of a segment, and where each part of it begins for a geometry.

    Everything but head, payloads, blobs and tick rows is aligned u64 words in the machine's byte order, each written by one side
    only and by one store. Lanes begin on pages.

        byte 0     head: "LENSRING", version u32, worker u32, incarnation u32, pid u32, the sizes of Geometry u64
        byte 128   state (State): the worker's, after its death the supervisor's
        byte 192   journal of the last drop: request, phase, slots, sum of the drop table with it
        byte 256   tails of the three lanes, the reader's: everything before them may be overwritten
        byte 288   closed, released, the reader's: the first tick that is open, and the first whose rows are still needed
        byte 320   left, the worker's: the first tick whose rows it may still increment
        byte 4096  64 counters (Counter), lag histogram, in-flight table, drop table [phase * targets + target][outcome]
        requests   256-byte slots: commit word, payload of engine.record
        gaps       one word each, engine.record
        details    512-byte slots: commit word, length, blob
        tick keys  one word per row: (tick + 1) << 16 | series, written last
        tick rows  u32 counts of records.ticks: what happened to a series in a tick

    A commit word is `crc32 << 32 | COMMITTED | number`. The number (from 1, 31 bits) distinguishes a slot of this lap from an
    older one, COMMITTED from a slot that is being written, which has 0 there. The crc of a record runs over its gaps
    and then its payload, the crc of a detail over its blob.

    An in-flight entry is (request + 1) << 1 | sent, intended_ns, send_ns, phase << 16 | target; its first word is
    written last, and is 0 in a free one.
    """

    def __init__(self, geometry: Geometry) -> None:
        for name in ("requests", "gaps", "details"):
            size = getattr(geometry, name)
            if size < 1 or size & (size - 1):
                raise SegmentError(f"{name} must be a power of two, got {size}")
        if geometry.ticks < geometry.phases * geometry.targets:
            raise SegmentError(
                f"{geometry.phases * geometry.targets} series need as many tick rows, got {geometry.ticks}"
            )
        self.inflight_word = TABLE_WORDS
        self.drops_word = self.inflight_word + geometry.inflight * ENTRY_WORDS
        self.drops = geometry.phases * geometry.targets * OUTCOMES
        self.requests = page_up((self.drops_word + self.drops) * 8)
        self.gaps = page_up(self.requests + geometry.requests * SLOT_BYTES)
        self.details = page_up(self.gaps + geometry.gaps * 8)
        self.tick_keys = page_up(self.details + geometry.details * DETAIL_BYTES)
        self.tick_rows = page_up(self.tick_keys + geometry.ticks * 8)
        self.size = page_up(self.tick_rows + geometry.ticks * ROW_BYTES)


def page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


assert PAYLOAD_BYTES + 8 == SLOT_BYTES
