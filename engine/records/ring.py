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

from ..errors import SegmentError
from .record import FIELDS, NO_TARGET, OUTCOMES, PAYLOAD_BYTES, RECORD, SLOT_BYTES, record_dtype

if TYPE_CHECKING:
    import numpy as np

MAGIC: Final = b"LENSRING"
VERSION: Final = 1
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
PHASE_SHIFT: Final = 48  # of the NEXT_SLOT counter: phase above, slot below
LAG_BUCKETS: Final = 640

_HEAD: Final = struct.Struct("<8sIIII6Q")
_STATE_WORD: Final = 16  # words of 8 bytes from the start of the file; each owner's words on a cache line of their own
_JOURNAL_WORDS: Final = 24
_TAIL_WORDS: Final = 32
_COUNTER_WORDS: Final = PAGE // 8
_COUNTERS: Final = 64
_LAG_WORDS: Final = _COUNTER_WORDS + _COUNTERS
_TABLE_WORDS: Final = _LAG_WORDS + LAG_BUCKETS
_PLACES: Final = {name: place for place, (name, _) in enumerate(FIELDS)}
_REQUEST: Final = _PLACES["request"]
_GAPS_END: Final = _PLACES["gaps_end"]
_SLOTS: Final = _PLACES["slots"]
_TARGET: Final = _PLACES["target"]
_PHASE: Final = _PLACES["phase"]
_OUTCOME: Final = _PLACES["outcome"]
_pack: Final = RECORD.pack


class State(IntEnum):
    """Whose turn a segment is: written, closed by its worker, or orphaned by its death (marked by the supervisor)."""

    LIVE = 1
    DONE = 2
    DEAD = 3


_STATES: Final = frozenset(State)


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
    REQUEST_DROPS = 18  # slots whose record found the lane full; the reader's is the sum of the drop table
    GAP_DROPS = 19
    GAPS_SATURATED = 20
    DETAIL_DROPS = 21
    LATE_RENDERS = 22
    CLOCK_BRACKET_NS = 23  # width of the mapping of kernel stamps to CLOCK_MONOTONIC, now
    BUDGET_LEFT = 24  # pico-USD + 1, 0 where there is no budget: what a successor may still spend
    MEASURED_NS = 25  # wall time in which CPU_MEASURED_NS was used


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
    """The format of a segment, and where each part of it begins for a geometry.

    Everything but head, payloads and blobs is aligned u64 words in the machine's byte order, each written by one side
    only and by one store. Lanes begin on pages.

        byte 0     head: "LENSRING", version u32, worker u32, incarnation u32, pid u32, the sizes of Geometry u64
        byte 128   state (State): the worker's, after its death the supervisor's
        byte 192   journal of the last drop: request, phase, slots, sum of the drop table with it
        byte 256   tails of the three lanes, the reader's: everything before them may be overwritten
        byte 4096  64 counters (Counter), lag histogram, in-flight table, drop table [phase * targets + target][outcome]
        requests   256-byte slots: commit word, payload of engine.record
        gaps       one word each, engine.record
        details    512-byte slots: commit word, length, blob

    A commit word is `crc32 << 32 | COMMITTED | number`. The number (from 1, 31 bits) tells a slot of this lap from an
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
        self.inflight_word = _TABLE_WORDS
        self.drops_word = self.inflight_word + geometry.inflight * ENTRY_WORDS
        self.drops = geometry.phases * geometry.targets * OUTCOMES
        self.requests = _page_up((self.drops_word + self.drops) * 8)
        self.gaps = _page_up(self.requests + geometry.requests * SLOT_BYTES)
        self.details = _page_up(self.gaps + geometry.gaps * 8)
        self.size = _page_up(self.details + geometry.details * DETAIL_BYTES)


class SegmentWriter:
    """The worker's end. One writer. Never blocks, never overwrites the unread: a full lane drops the newest, counted.

    A record is committed in this order: its gaps, commit word 0, payload by one slice assignment, commit word. A reader
    on a machine that shows stores in another order finds that the crc does not fit yet, and waits.

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
        self._journal = words[_JOURNAL_WORDS : _JOURNAL_WORDS + 4]
        self._tails = words[_TAIL_WORDS : _TAIL_WORDS + 3]
        self._requests = view[layout.requests : layout.requests + geometry.requests * SLOT_BYTES]
        self._request_words = self._requests.cast("Q")
        self._gaps = words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._details = view[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._detail_words = self._details.cast("Q")
        self._request_head = self._gap_head = self._detail_head = self._dropped = 0
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
        the gap lane is full, the gaps are dropped and counted and the record is kept. Raises struct.error for values
        that the layout cannot hold; the segment is as before then.
        """
        head = self._request_head
        if head - self._tails[0] > self._request_mask:
            self._drop(values, gaps)
            return False
        start = end = self._gap_head
        if gaps and end + len(gaps) - self._tails[1] <= self._gap_mask + 1:
            end += len(gaps)
        fields = list(values)  # 0.3 us less than *values[:_GAPS_END], end, ... (benches/bench_ring.py)
        fields[_GAPS_END] = end
        payload = _pack(*fields)
        checksum = 0
        if gaps:
            if end == start:
                self.counters[Counter.GAP_DROPS] += len(gaps)
            else:
                self._put_gaps(gaps, start)
                self._gap_head = end
                checksum = crc32(gaps)
        place = (head & self._request_mask) * SLOT_BYTES
        word = place >> 3
        words = self._request_words
        words[word] = 0
        self._requests[place + 8 : place + SLOT_BYTES] = payload
        self._request_head = head = head + 1
        words[word] = crc32(payload, checksum) << 32 | COMMITTED | head & NUMBER_MASK
        return True

    def push_detail(self, blob: bytes) -> bool:
        """Commits one detail of at most DETAIL_MAX bytes, before the record it belongs to. False: dropped, counted."""
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
        words[word] = crc32(blob) << 32 | COMMITTED | head & NUMBER_MASK
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
            lane[start : start + len(gaps)] = gaps
        else:
            whole = memoryview(gaps)
            lane[start:] = whole[:room]
            lane[: len(gaps) - room] = whole[room:]

    def _drop(self, values: Sequence[int], gaps: array[int] | None) -> None:
        """Counts what found no room. The store into the drop table is what makes it so: the journal before it tells
        the reader which in-flight entry that was, in case the worker is killed before it can clear it."""
        if gaps:
            self.counters[Counter.GAP_DROPS] += len(gaps)
        slots = values[_SLOTS]
        self._dropped += slots
        journal = self._journal
        journal[3] = 0
        journal[0] = values[_REQUEST]
        journal[1] = values[_PHASE]
        journal[2] = slots
        journal[3] = self._dropped
        target = min(values[_TARGET], self.geometry.targets - 1)  # NO_TARGET has no row of its own
        series = values[_PHASE] * self.geometry.targets + target
        self._drops[series * OUTCOMES + values[_OUTCOME]] += slots
        self.counters[Counter.REQUEST_DROPS] = self._dropped


class SegmentReader:
    """The collector's end. One reader. It has private cursors; `release()` gives the room back to the writer.

    Everything it returns is a copy, verified: a slot whose commit word does not fit its bytes ends the reading there.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        import numpy as np

        magic, version, self.worker, self.incarnation, self.pid, *sizes = _HEAD.unpack_from(memory)
        if magic != MAGIC or version != VERSION:
            raise SegmentError(f"{path} is not a ring segment of version {VERSION}")
        if self.worker > WORKER_MAX or not 0 < self.pid <= PID_MAX:
            raise SegmentError(f"{path} says that it is of worker {self.worker}, process {self.pid}")
        self.path = path
        self.geometry = geometry = Geometry(*sizes)
        layout = Layout(geometry)
        if len(memory) != layout.size:
            raise SegmentError(f"{path} has {len(memory)} bytes, its head says {layout.size}")
        self._memory = memory
        self._layout = layout
        self._words = np.frombuffer(memory, np.uint64)
        lane = np.frombuffer(memory, np.uint8, geometry.requests * SLOT_BYTES, layout.requests)
        self._slots = lane.reshape(geometry.requests, SLOT_BYTES)
        self._commits = lane.view(np.uint64)[:: SLOT_BYTES // 8]
        self._gap_lane = self._words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._details = memoryview(memory)[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._detail_words = self._details.cast("Q")
        self._dtype = record_dtype()
        self._cursor = self._gap_cursor = self._detail_cursor = 0
        self._checked_gaps = 0  # the gap lane's position after the last record that was verified
        self.torn = 0  # times that a committed slot's bytes did not fit its crc, yet or at all

    @classmethod
    def open(cls, path: Path) -> SegmentReader:
        """Maps an existing segment. Raises SegmentError if it is none, FileNotFoundError if there is no file."""
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < _HEAD.size:
                raise SegmentError(f"{path} is too short for a ring segment")
            return cls(path, mmap.mmap(file.fileno(), 0))

    @property
    def state(self) -> State:
        """LIVE also where the word is none of them: then the end of its process ends the segment."""
        word = int(self._words[_STATE_WORD])
        return State(word) if word in _STATES else State.LIVE

    def requests(self, limit: int = 1 << 16) -> np.ndarray[Any, Any]:
        """The records committed since the cursor, at most `limit`, as a structured array of engine.record."""
        import numpy as np

        count = self._committed(limit)
        if not count:
            return np.zeros(0, self._dtype)
        places = self._places(self._cursor, count)
        sums = (self._commits[places] >> 32).tolist()
        payloads = self._slots[places, 8:].reshape(-1)
        records = payloads.view(self._dtype)
        whole = payloads.data
        position = self._checked_gaps
        good = 0
        for end, checksum in zip(records["gaps_end"].tolist(), sums, strict=True):
            payload = whole[good * PAYLOAD_BYTES : (good + 1) * PAYLOAD_BYTES]
            if crc32(payload, self._gap_sum(position, end)) != checksum:
                self.torn += 1
                break
            position = end
            good += 1
        self._checked_gaps = position
        self._cursor += good
        return records[:good]

    def gaps(self, until: int) -> np.ndarray[Any, Any]:
        """The gap words from the cursor to position `until` (the `gaps_end` of a record that was read)."""
        import numpy as np

        size = self.geometry.gaps
        first, count = self._gap_cursor & size - 1, until - self._gap_cursor
        self._gap_cursor = until
        if first + count <= size:
            return self._gap_lane[first : first + count].copy()
        return np.concatenate((self._gap_lane[first:], self._gap_lane[: first + count - size]))

    def details(self) -> list[bytes]:
        """The details committed since the cursor. Read after requests(): a detail is there before its record."""
        found: list[bytes] = []
        words = self._detail_words
        for number in range(self._detail_cursor, self._detail_cursor + self.geometry.details):
            place = (number & self.geometry.details - 1) * DETAIL_BYTES
            commit, size = words[place >> 3], words[(place >> 3) + 1]
            if commit & SEQUENCE_MASK != COMMITTED | number + 1 & NUMBER_MASK or size > DETAIL_MAX:
                break
            blob = bytes(self._details[place + 16 : place + 16 + size])
            if crc32(blob) != commit >> 32:
                self.torn += 1
                break
            found.append(blob)
        self._detail_cursor += len(found)
        return found

    def cursors(self) -> tuple[int, int, int]:
        """(records, gaps, details) read so far: what a checkpoint keeps. Read the gaps of all records first."""
        return self._cursor, self._gap_cursor, self._detail_cursor

    def seek(self, cursors: tuple[int, int, int]) -> None:
        """Goes on from a checkpoint."""
        self._cursor, self._gap_cursor, self._detail_cursor = cursors
        self._checked_gaps = self._gap_cursor

    def release(self) -> None:
        """Gives the room of everything read back to the writer. Only after the checkpoint that holds it.

        The lanes' pages are unmapped, as by the writer's trim(): this process does not grow to the size of the rings.
        """
        for word, cursor in enumerate(self.cursors(), _TAIL_WORDS):
            self._words[word] = cursor
        layout = self._layout
        self._memory.madvise(mmap.MADV_DONTNEED, layout.requests, layout.size - layout.requests)

    def counters(self) -> list[int]:
        """All live counters, indexed by Counter."""
        found: list[int] = self._words[_COUNTER_WORDS : _COUNTER_WORDS + _COUNTERS].tolist()
        found[Counter.REQUEST_DROPS] = int(self._drop_table().sum())
        return found

    def lag(self) -> np.ndarray[Any, Any]:
        """The lag histogram: reads by `lag_bucket`, since the worker's start."""
        return self._words[_LAG_WORDS : _LAG_WORDS + LAG_BUCKETS].copy()

    def drops(self) -> np.ndarray[Any, Any]:
        """Slots of dropped records by [phase * targets + target][outcome], since the worker's start."""
        return self._drop_table().reshape(-1, OUTCOMES).copy()

    def leftovers(self) -> list[Leftover]:
        """The requests in flight that no book tells of. Of a living worker: about those in flight now.

        The worker clears an entry after it committed or dropped the record. Killed in between, it leaves an entry of
        the request that the newest record or the last drop is about.
        """
        import numpy as np

        table = self._words[self._layout.inflight_word : self._layout.drops_word].reshape(-1, ENTRY_WORDS)
        slots = np.flatnonzero(table[:, 0])
        entries = table[slots].tolist()
        told = self._told_last()
        found: list[Leftover] = []
        for slot, (key, intended, send, where) in zip(slots.tolist(), entries, strict=True):
            request, phase, target = (key >> 1) - 1, where >> 16, where & 0xFFFF
            known = phase < self.geometry.phases and (target < self.geometry.targets or target == NO_TARGET)
            if key > 1 and known and (request, phase) not in told:
                found.append(Leftover(request, intended, send, phase, target, slot, bool(key & 1)))
        return found

    def close(self) -> None:
        """Lets the mapping go; arrays that were returned are copies and stay."""
        self._detail_words.release()
        self._details.release()
        del self._words, self._slots, self._commits, self._gap_lane
        self._memory.close()

    def _committed(self, limit: int) -> int:
        """How many slots from the cursor on are committed, at most `limit`.

        Looks at no more of the lane than it must: all its commit words are 1 ms and the lane's size in RSS.
        """
        import numpy as np

        limit = min(limit, self.geometry.requests)
        found, step = 0, 64
        while found < limit and self._holds(self._cursor + found + 1):
            start = self._cursor + found
            step = min(step, limit - found)
            numbers = np.arange(start + 1, start + step + 1) & NUMBER_MASK | COMMITTED
            fits = self._commits[self._places(start, step)] & SEQUENCE_MASK == numbers.astype(np.uint64)
            if not fits.all():
                return found + int(fits.argmin())
            found += step
            step = min(step * 8, 4096)
        return found

    def _holds(self, number: int) -> bool:
        """Whether the record of this number is committed and still in its slot."""
        commit = int(self._commits[number - 1 & self.geometry.requests - 1])
        return commit & SEQUENCE_MASK == COMMITTED | number & NUMBER_MASK

    def _places(self, start: int, count: int) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.arange(start, start + count) & self.geometry.requests - 1

    def _gap_sum(self, start: int, end: int) -> int:
        """The crc of the gap words from `start` to `end`; 0 if there are none or these cannot be positions."""
        size = self.geometry.gaps
        count = end - start
        if not 0 < count <= size:
            return 0
        first = start & size - 1
        if first + count <= size:
            return crc32(self._gap_lane[first : first + count].data)
        return crc32(self._gap_lane[: first + count - size].data, crc32(self._gap_lane[first:].data))

    def _drop_table(self) -> np.ndarray[Any, Any]:
        return self._words[self._layout.drops_word : self._layout.drops_word + self._layout.drops]

    def _told_last(self) -> set[tuple[int, int]]:
        """(request, phase) of the newest record and of the last drop that is in the drop table."""
        told = set()
        head = self._cursor + self._committed(self.geometry.requests)
        if self._holds(head):
            newest = self._slots[head - 1 & self.geometry.requests - 1, 8:].copy().view(self._dtype)[0]
            told.add((int(newest["request"]), int(newest["phase"])))
        request, phase, _, total = self._words[_JOURNAL_WORDS : _JOURNAL_WORDS + 4].tolist()
        if 0 < total <= self._drop_table().sum():
            told.add((request, phase))
        return told


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
            points += [
                _point_after((words[place] >> 1) - 1, words[place + 3] >> 16, 1)
                for place in range(layout.inflight_word, layout.drops_word, ENTRY_WORDS)
                if words[place]
            ]
            newest = _newest_place(words, layout, geometry)
            if newest is not None:
                values = RECORD.unpack_from(memory, newest + 8)
                points.append(_point_after(values[_REQUEST], values[_PHASE], values[_SLOTS]))
            request, phase, slots, total = words[_JOURNAL_WORDS : _JOURNAL_WORDS + 4]
            if 0 < total <= sum(words[layout.drops_word : layout.drops_word + layout.drops]):
                points.append(_point_after(request, phase, slots))
    last = max(points)
    return last >> PHASE_SHIFT, last & (1 << PHASE_SHIFT) - 1


def budget_left(path: Path) -> int | None:
    """Pico-USD that a dead worker had left to spend; what it had reserved counts as spent. None without a budget."""
    with path.open("rb") as file:
        file.seek(8 * (_COUNTER_WORDS + Counter.BUDGET_LEFT))
        left = int.from_bytes(file.read(8), "little")
    return left - 1 if left else None


def _point_after(request: int, phase: int, slots: int) -> int:
    """Where the share goes on after a request; a run of unsent slots is the rest of the share."""
    return phase << PHASE_SHIFT | (SLOT_MASK if slots > 1 else (request & SLOT_MASK) + 1)


def _newest_place(words: memoryview, layout: Layout, geometry: Geometry) -> int | None:
    """The byte where the slot of the newest committed record begins. Walks from the tail: what was written since."""
    lane, mask = layout.requests // 8, geometry.requests - 1
    head = words[_TAIL_WORDS]

    def commits(number: int) -> bool:
        commit: int = words[lane + (number - 1 & mask) * (SLOT_BYTES // 8)]
        return commit & SEQUENCE_MASK == COMMITTED | number & NUMBER_MASK

    while commits(head + 1):
        head += 1
    return (lane * 8 + (head - 1 & mask) * SLOT_BYTES) if commits(head) else None


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
