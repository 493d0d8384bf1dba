"""Ring segments in shared memory: how records leave a worker and survive its SIGKILL.

One plain file per worker life on tmpfs, mmapped by one writer (the worker) and one reader (the collector). Not
`multiprocessing.shared_memory`: when its creator is killed, its tracker deletes the segment.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from array import array
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

from llm_latency_lens.engine.errors import SegmentError
from llm_latency_lens.engine.record import FIELDS, OUTCOMES, PAYLOAD_BYTES, RECORD, SLOT_BYTES, UNKNOWN, record_dtype

if TYPE_CHECKING:
    import numpy as np

MAGIC: Final = b"LENSRING"
VERSION: Final = 1
PAGE: Final = 4096
DETAIL_BYTES: Final = 512
DETAIL_MAX: Final = DETAIL_BYTES - 16
ENTRY_WORDS: Final = 4
SEQUENCE_MASK: Final = 0xFFFF_FFFF
TURN_SHIFT: Final = 40  # a request number is slot | turn << TURN_SHIFT
SLOT_MASK: Final = (1 << TURN_SHIFT) - 1
PHASE_SHIFT: Final = 48  # of the NEXT_SLOT counter: phase above, slot below
LAG_BUCKETS: Final = 640

_HEAD: Final = struct.Struct("<8sIIII6Q")
_STATE_WORD: Final = 16  # words of 8 bytes from the start of the file; each owner's words on a cache line of their own
_TAIL_WORDS: Final = 32
_COUNTER_WORDS: Final = PAGE // 8
_COUNTERS: Final = 64
_LAG_WORDS: Final = _COUNTER_WORDS + _COUNTERS
_TABLE_WORDS: Final = _LAG_WORDS + LAG_BUCKETS
_GAPS_END: Final = [name for name, _ in FIELDS].index("gaps_end")
_OUTCOME: Final = [name for name, _ in FIELDS].index("outcome")
_PHASE: Final = [name for name, _ in FIELDS].index("phase")
_TARGET: Final = [name for name, _ in FIELDS].index("target")


class State(IntEnum):
    """Whose turn a segment is: written, closed by its worker, or orphaned by its death (marked by the supervisor)."""

    LIVE = 1
    DONE = 2
    DEAD = 3


class Counter(IntEnum):
    """The live counters of a worker, each one aligned u64. Totals since its start unless the name says otherwise."""

    NEXT_SLOT = 0  # phase << PHASE_SHIFT | slot: where a successor goes on
    SENT = 1
    IN_FLIGHT = 2  # now
    EVENTS = 3
    BYTES_IN = 4
    BYTES_OUT = 5
    READS = 6
    CONNECTIONS = 7
    STALE_RESENDS = 8
    GC_PAUSES = 9
    GC_PAUSE_NS = 10
    CLOCK_STEPS = 11
    USER_STAMPS = 12
    CPU_NS = 13
    CPU_MEASURED_NS = 14
    EVENTS_MEASURED = 15
    HEARTBEAT_NS = 16  # CLOCK_MONOTONIC, of the last heartbeat
    PHASE = 17  # the phase begun last
    REQUEST_DROPS = 18
    GAP_DROPS = 19
    GAPS_SATURATED = 20
    DETAIL_DROPS = 21
    LATE_RENDERS = 22
    RSS_BYTES = 23


class Geometry(NamedTuple):
    """Sizes of a segment's parts in slots; the first three are powers of two."""

    requests: int
    gaps: int
    details: int
    inflight: int
    phases: int
    targets: int


class Leftover(NamedTuple):
    """A request that was in flight when its worker died."""

    request: int
    intended_ns: int
    send_ns: int  # 0 if it was not sent
    phase: int
    target: int
    slot: int
    sent: bool


class Layout:
    """Where each part of a segment of some geometry begins, in bytes.

    head page | counters, lag histogram, in-flight table, drop table | request lane | gap lane | detail lane
    """

    def __init__(self, geometry: Geometry) -> None:
        for name in ("requests", "gaps", "details"):
            size = getattr(geometry, name)
            if size < 1 or size & (size - 1):
                raise SegmentError(f"{name} must be a power of two, got {size}")
        self.inflight_word = _TABLE_WORDS
        self.drops_word = self.inflight_word + geometry.inflight * ENTRY_WORDS
        self.drops = geometry.phases * geometry.targets * OUTCOMES
        self.requests = _page_up((self.drops_word + self.drops) * 8)
        self.gaps = _page_up(self.requests + geometry.requests * SLOT_BYTES)
        self.details = _page_up(self.gaps + geometry.gaps * 8)
        self.size = _page_up(self.details + geometry.details * DETAIL_BYTES)


class SegmentWriter:
    """The worker's end. One writer. Never blocks, never overwrites what is unread: a full lane drops the newest, counted.

    A slot of the request lane is a commit word and a payload of engine.record. The commit word is
    `crc32(gaps + payload) << 32 | sequence`, an aligned store that follows the payload's single slice assignment;
    sequence is the record's number, from 1, so that a slot of an earlier lap is never taken for a new one. A request's
    gaps are in the gap lane before its commit, which makes them visible (`gaps_end`) and protects them (crc).
    A slot of the detail lane is a commit word, a length word and a blob.

    `struct.pack_into` is never used on shared memory: it zeroes before it writes, and a reader sees that.
    """

    def __init__(self, path: Path, memory: mmap.mmap, geometry: Geometry) -> None:
        self.path = path
        self.geometry = geometry
        layout = Layout(geometry)
        self._memory = memory
        self._layout = layout
        view = memoryview(memory)
        words = view.cast("Q")
        self._words = words
        self.counters = words[_COUNTER_WORDS : _COUNTER_WORDS + _COUNTERS]
        self.lag = words[_LAG_WORDS : _LAG_WORDS + LAG_BUCKETS]
        self._table = words[layout.inflight_word : layout.inflight_word + geometry.inflight * ENTRY_WORDS]
        self._drops = words[layout.drops_word : layout.drops_word + layout.drops]
        self._tails = words[_TAIL_WORDS : _TAIL_WORDS + 3]
        self._requests = view[layout.requests : layout.requests + geometry.requests * SLOT_BYTES]
        self._request_words = self._requests.cast("Q")
        self._gaps = words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._details = view[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._detail_words = self._details.cast("Q")
        self._view = view
        self._request_head = self._gap_head = self._detail_head = 0
        self._request_mask = geometry.requests - 1
        self._gap_mask = geometry.gaps - 1
        self._detail_mask = geometry.details - 1

    @classmethod
    def create(cls, path: Path, geometry: Geometry, *, worker: int, incarnation: int = 0) -> SegmentWriter:
        """Makes the file under a temporary name, reserves its memory, writes the head and renames it into place.

        Raises SegmentError when the tmpfs has no room for it: better now than a SIGBUS later.
        """
        layout = Layout(geometry)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SegmentError(f"cannot make the ring segment {path}: {error.strerror}") from error
        try:
            os.posix_fallocate(fd, 0, layout.size)
            memory = mmap.mmap(fd, layout.size)
        except OSError as error:
            temporary.unlink()
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise SegmentError(f"cannot make the ring segment {path}: {error.strerror}") from error
            raise SegmentError(
                f"{path.parent} has no room for a ring segment of {layout.size / 1e6:.1f} MB ({error.strerror}); "
                "give the tmpfs more room (mount -o remount,size=...) or use fewer workers"
            ) from error
        finally:
            os.close(fd)
        memory[: _HEAD.size] = _HEAD.pack(MAGIC, VERSION, worker, incarnation, os.getpid(), *geometry)
        writer = cls(path, memory, geometry)
        writer._words[_STATE_WORD] = State.LIVE
        temporary.rename(path)
        return writer

    def push(self, values: Sequence[int], gaps: array[int] | None) -> bool:
        """Commits one record, values in the order of FIELDS (`gaps_end` is filled in), with its gaps.

        False when the request lane is full: record and gaps are dropped and counted by series and outcome. When only
        the gap lane is full, the gaps are dropped and counted and the record is kept.
        """
        head = self._request_head
        if head - self._tails[0] > self._request_mask:
            self._drop(values, gaps)
            return False
        seed = 0
        end = self._gap_head
        if gaps:
            if end + len(gaps) - self._tails[1] > self._gap_mask + 1:
                self.counters[Counter.GAP_DROPS] += len(gaps)
            else:
                self._put_gaps(gaps, end)
                end = self._gap_head = end + len(gaps)
                seed = crc32(gaps)
        payload = RECORD.pack(*values[:_GAPS_END], end, *values[_GAPS_END + 1 :])
        place = (head & self._request_mask) * SLOT_BYTES
        word = place >> 3
        words = self._request_words
        words[word] = 0
        self._requests[place + 8 : place + SLOT_BYTES] = payload
        self._request_head = head = head + 1
        words[word] = crc32(payload, seed) << 32 | head & SEQUENCE_MASK
        return True

    def push_detail(self, blob: bytes) -> bool:
        """Commits one detail of at most DETAIL_MAX bytes, before the record it belongs to. False when dropped, counted."""
        head = self._detail_head
        if head - self._tails[2] > self._detail_mask or len(blob) > DETAIL_MAX:
            self.counters[Counter.DETAIL_DROPS] += 1
            return False
        place = (head & self._detail_mask) * DETAIL_BYTES
        word = place >> 3
        words = self._detail_words
        words[word] = 0
        words[word + 1] = len(blob)
        self._details[place + 16 : place + 16 + len(blob)] = blob
        self._detail_head = head = head + 1
        words[word] = crc32(blob) << 32 | head & SEQUENCE_MASK
        return True

    def begin(self, slot: int, request: int, intended_ns: int, phase: int, target: int) -> None:
        """Enters a request into the in-flight table; the key word last, so that an entry is whole or absent."""
        table = self._table
        place = slot * ENTRY_WORDS
        table[place + 1] = intended_ns
        table[place + 2] = 0
        table[place + 3] = phase << 16 | target
        table[place] = request + 1 << 1

    def sent(self, slot: int, send_ns: int) -> None:
        """Marks the request as handed to send()."""
        table = self._table
        place = slot * ENTRY_WORDS
        table[place + 2] = send_ns
        table[place] |= 1

    def clear(self, slot: int) -> None:
        """Takes the request out, after its record was pushed."""
        self._table[slot * ENTRY_WORDS] = 0

    def trim(self) -> None:
        """Unmaps the lanes' pages, so that this process's memory does not grow to the ring's size; the data stays."""
        layout = self._layout
        self._memory.madvise(mmap.MADV_DONTNEED, layout.requests, layout.size - layout.requests)

    def close(self, state: State = State.DONE) -> None:
        """Sets the final state. The mapping itself goes with the process."""
        self._words[_STATE_WORD] = state

    def _put_gaps(self, gaps: array[int], head: int) -> None:
        start = head & self._gap_mask
        room = self._gap_mask + 1 - start
        lane = self._gaps
        if len(gaps) <= room:
            lane[start : start + len(gaps)] = memoryview(gaps)
        else:
            whole = memoryview(gaps)
            lane[start:] = whole[:room]
            lane[: len(gaps) - room] = whole[room:]

    def _drop(self, values: Sequence[int], gaps: array[int] | None) -> None:
        self.counters[Counter.REQUEST_DROPS] += 1
        if gaps:
            self.counters[Counter.GAP_DROPS] += len(gaps)
        target = min(values[_TARGET], self.geometry.targets - 1)
        series = values[_PHASE] * self.geometry.targets + target
        self._drops[series * OUTCOMES + values[_OUTCOME]] += 1


class SegmentReader:
    """The collector's end. One reader. It has private cursors; `release()` gives the room back to the writer.

    Everything it returns is a copy, verified: a slot whose commit word does not fit its bytes ends the reading there.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        import numpy as np

        magic, version, self.worker, self.incarnation, self.pid, *sizes = _HEAD.unpack_from(memory)
        if magic != MAGIC or version != VERSION:
            raise SegmentError(f"{path} is not a ring segment of version {VERSION}")
        self.path = path
        self.geometry = geometry = Geometry(*sizes)
        layout = Layout(geometry)
        if len(memory) != layout.size:
            raise SegmentError(f"{path} has {len(memory)} bytes, its head says {layout.size}")
        self._memory = memory
        self._words = np.frombuffer(memory, np.uint64)
        bytes_ = np.frombuffer(memory, np.uint8)
        self._layout = layout
        lane = bytes_[layout.requests : layout.requests + geometry.requests * SLOT_BYTES]
        self._slots = lane.reshape(geometry.requests, SLOT_BYTES)
        self._commits = lane.view(np.uint64)[:: SLOT_BYTES // 8]
        self._gap_lane = self._words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._detail_lane = memoryview(memory)[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._dtype = record_dtype()
        self._cursor = self._gap_cursor = self._detail_cursor = 0
        self._checked_gaps = 0  # the gap lane's position after the last record that was verified
        self.torn = 0

    @classmethod
    def open(cls, path: Path) -> SegmentReader:
        """Maps an existing segment. Raises SegmentError if it is none, FileNotFoundError if there is no file."""
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < _HEAD.size:
                raise SegmentError(f"{path} is too short for a ring segment")
            return cls(path, mmap.mmap(file.fileno(), 0))

    @property
    def state(self) -> State:
        return State(int(self._words[_STATE_WORD]))

    def requests(self, limit: int = 1 << 16) -> np.ndarray[Any, Any]:
        """The records committed since the cursor, at most `limit`, as a structured array of engine.record."""
        import numpy as np

        start = self._cursor
        count = min(limit, self.geometry.requests)
        places = np.arange(start, start + count, dtype=np.uint64) & np.uint64(self.geometry.requests - 1)
        expected = (np.arange(start + 1, start + count + 1, dtype=np.uint64)) & np.uint64(SEQUENCE_MASK)
        commits = self._commits[places]
        committed = (commits & np.uint64(SEQUENCE_MASK)) == expected
        ready = count if committed.all() else int(committed.argmin())
        payloads = self._slots[places[:ready], 8:]
        records = payloads.reshape(-1).view(self._dtype)
        ends = records["gaps_end"].tolist()
        sums = (commits[:ready] >> np.uint64(32)).tolist()
        good = 0
        position = self._checked_gaps
        for payload, end, expected_sum in zip(payloads, ends, sums, strict=True):
            seed = crc32(self._gap_words(position, end).tobytes()) if position < end else 0
            if crc32(payload.tobytes(), seed) != expected_sum:
                self.torn += 1
                break
            position = end
            good += 1
        self._checked_gaps = position
        self._cursor = start + good
        return records[:good]

    def gaps(self, until: int) -> np.ndarray[Any, Any]:
        """The gap words from the cursor to position `until` (the `gaps_end` of a record that was read)."""
        words = self._gap_words(self._gap_cursor, until)
        self._gap_cursor = until
        return words

    def details(self) -> list[bytes]:
        """The details committed since the cursor. Read after requests(): a detail is there before its record."""
        found: list[bytes] = []
        mask = self.geometry.details - 1
        while len(found) <= mask:
            place = (self._detail_cursor & mask) * DETAIL_BYTES
            commit, size = struct.unpack_from("<QQ", self._detail_lane, place)
            if commit & SEQUENCE_MASK != (self._detail_cursor + 1) & SEQUENCE_MASK or size > DETAIL_MAX:
                break
            blob = bytes(self._detail_lane[place + 16 : place + 16 + size])
            if crc32(blob) != commit >> 32:
                break
            found.append(blob)
            self._detail_cursor += 1
        return found

    def cursors(self) -> tuple[int, int, int]:
        """(records, gaps, details) read so far: what a checkpoint keeps."""
        return self._cursor, self._gap_cursor, self._detail_cursor

    def seek(self, cursors: tuple[int, int, int]) -> None:
        """Goes on from a checkpoint."""
        self._cursor, self._gap_cursor, self._detail_cursor = cursors
        self._checked_gaps = self._gap_cursor

    def release(self) -> None:
        """Gives the room of everything read back to the writer. Only after the checkpoint that holds it."""
        for word, cursor in enumerate(self.cursors(), _TAIL_WORDS):
            self._words[word] = cursor

    def counters(self) -> list[int]:
        """All live counters, indexed by Counter."""
        found: list[int] = self._words[_COUNTER_WORDS : _COUNTER_WORDS + _COUNTERS].tolist()
        return found

    def lag(self) -> np.ndarray[Any, Any]:
        """The lag histogram: reads by `lag_bucket`, since the worker's start."""
        return self._words[_LAG_WORDS : _LAG_WORDS + LAG_BUCKETS].copy()

    def drops(self) -> np.ndarray[Any, Any]:
        """Dropped records by [phase * targets + target][outcome], since the worker's start."""
        table = self._words[self._layout.drops_word : self._layout.drops_word + self._layout.drops]
        return table.reshape(-1, OUTCOMES).copy()

    def leftovers(self) -> list[Leftover]:
        """The requests in flight that no committed record tells of. Only for a segment whose worker is gone.

        The worker clears an entry after it committed the record; killed in between, the entry equals the last record.
        """
        last = last_record(self)
        entries = self._words[self._layout.inflight_word : self._layout.drops_word].reshape(-1, ENTRY_WORDS)
        found: list[Leftover] = []
        for slot, (key, intended, send, where) in enumerate(entries.tolist()):
            if not key:
                continue
            request, phase, target = (key >> 1) - 1, where >> 16, where & 0xFFFF
            if (slot, request, phase) != last:
                found.append(Leftover(request, intended, send, phase, target, slot, bool(key & 1)))
        return found

    def close(self) -> None:
        """Lets the mapping go; arrays that were returned are copies and stay."""
        self._detail_lane.release()
        del self._words, self._slots, self._commits, self._gap_lane
        self._memory.close()

    def _gap_words(self, start: int, end: int) -> np.ndarray[Any, Any]:
        import numpy as np

        mask = self.geometry.gaps - 1
        if end - start > mask + 1:
            end = start  # bytes that are no record: the crc will say so
        first, last = start & mask, (start & mask) + end - start
        if last <= mask + 1:
            return self._gap_lane[first:last].copy()
        return np.concatenate((self._gap_lane[first:], self._gap_lane[: last - mask - 1]))


def last_record(reader: SegmentReader) -> tuple[int, int, int] | None:
    """(in-flight slot, request, phase) of the newest committed record; None if there is none."""
    newest = newest_record(reader)
    if newest is None:
        return None
    return int(newest["inflight_slot"]), int(newest["request"]), int(newest["phase"])


def newest_record(reader: SegmentReader) -> Any:
    """The newest committed record of a segment, read or not; None if there is none."""
    import numpy as np

    commits = reader._commits
    sequences = (commits & np.uint64(SEQUENCE_MASK)).astype(np.int64)
    if not sequences.any():
        return None
    # Sequences of one lane lie within one lap of each other, so also across the wrap of 32 bits.
    reference = int(sequences.max())
    distance = (sequences - reference + (1 << 31)) % (1 << 32) - (1 << 31)
    distance[sequences == 0] = -(1 << 31)
    place = int(distance.argmax())
    return reader._slots[place : place + 1, 8:].reshape(-1).view(record_dtype())[0]


def mark_dead(path: Path) -> None:
    """Tells the collector that the segment's worker is gone and nothing more will be written."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as memory, memoryview(memory).cast("Q") as words:
        words[_STATE_WORD] = State.DEAD


def resume_point(path: Path) -> tuple[int, int]:
    """(phase, first slot) at which the successor of a dead worker goes on: after the last slot that is in any book."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory, memoryview(memory) as view:
        geometry = Geometry(*_HEAD.unpack_from(memory)[5:])
        layout = Layout(geometry)
        with view.cast("Q") as words:
            points = [words[_COUNTER_WORDS + Counter.NEXT_SLOT]]
            for place in range(layout.inflight_word, layout.drops_word, ENTRY_WORDS):
                if words[place]:
                    slot = (words[place] >> 1) - 1 & SLOT_MASK
                    points.append((words[place + 3] >> 16) << PHASE_SHIFT | slot + 1)
            points += _committed_points(memory, words, layout, geometry)
    newest = max(points)
    return newest >> PHASE_SHIFT, newest & (1 << PHASE_SHIFT) - 1


def _committed_points(memory: mmap.mmap, words: memoryview, layout: Layout, geometry: Geometry) -> list[int]:
    """Where the newest committed record says that the share goes on; a run of unsent slots is the rest of the share."""
    newest, place = 0, 0
    for slot in range(geometry.requests):
        start = layout.requests + slot * SLOT_BYTES
        sequence = words[start >> 3] & SEQUENCE_MASK
        if sequence > newest:
            newest, place = sequence, start
    if not newest:
        return []
    values = dict(zip((name for name, _ in FIELDS), RECORD.unpack_from(memory, place + 8), strict=True))
    if values["slots"] > 1:
        return [values["phase"] << PHASE_SHIFT | SLOT_MASK]
    return [values["phase"] << PHASE_SHIFT | (values["request"] & SLOT_MASK) + 1]


def lag_bucket(ns: int) -> int:
    """The bucket of a lag: linear below 16 ns, then 16 buckets per octave, at most 6.25 % wide."""
    if ns < 16:
        return ns if ns > 0 else 0
    bits = ns.bit_length()
    bucket = bits - 4 << 4 | ns >> bits - 5 & 15
    return bucket if bucket < LAG_BUCKETS else LAG_BUCKETS - 1


def lag_value(bucket: int) -> int:
    """The highest lag that belongs to a bucket, in ns."""
    if bucket < 16:
        return bucket
    octave, part = bucket >> 4, bucket & 15
    return (16 + part + 1 << octave - 1) - 1


def _page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


assert PAYLOAD_BYTES + 8 == SLOT_BYTES
assert UNKNOWN == SEQUENCE_MASK
