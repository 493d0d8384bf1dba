"""The collector's end of a ring segment (format: records.layout)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ..errors import SegmentError
from .lag import LAG_BUCKETS
from .layout import (
    BOUND_WORDS,
    COMMITTED,
    COUNTER_WORDS,
    COUNTERS,
    DETAIL_BYTES,
    DETAIL_MAX,
    ENTRY_WORDS,
    HEAD,
    JOURNAL_WORDS,
    LAG_WORDS,
    LEFT_WORD,
    MAGIC,
    NUMBER_MASK,
    PID_MAX,
    SEQUENCE_MASK,
    STATE_WORD,
    TAIL_WORDS,
    VERSION,
    WORKER_MAX,
    Counter,
    Geometry,
    Layout,
    State,
)
from .record import NO_TARGET, OUTCOMES, PAYLOAD_BYTES, SLOT_BYTES, record_dtype
from .ticks import ROW_WORDS, SERIES_BITS, SERIES_MASK

_STATES: Final = frozenset(State)


class Leftover(NamedTuple):
    """A request that was in flight when its worker died."""

    request: int
    intended_ns: int
    send_ns: int  # 0 if it was not sent
    phase: int
    target: int
    slot: int
    sent: bool


class SegmentReader:
    """The collector's end. One reader. It has private cursors; `release()` returns the space to the writer.

    Everything it returns is a copy, verified: a slot whose commit word does not fit its bytes ends the reading there.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        magic, version, self.worker, self.incarnation, self.pid, *sizes = HEAD.unpack_from(memory)
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
        # Commit words of all slots as one strided view: a comparison of 4,096 of them is one numpy call.
        self._commits = lane.view(np.uint64)[:: SLOT_BYTES // 8]
        self._gap_lane = self._words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._details = memoryview(memory)[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._detail_words = self._details.cast("Q")
        self._tick_keys = self._words[layout.tick_keys // 8 : layout.tick_keys // 8 + geometry.ticks]
        rows = np.frombuffer(memory, np.uint32, geometry.ticks * ROW_WORDS, layout.tick_rows)
        self._tick_rows = rows.reshape(geometry.ticks, ROW_WORDS)
        self._dtype = record_dtype()
        self._cursor = self._gap_cursor = self._detail_cursor = 0
        self._checked_gaps = 0  # the gap lane's position after the last record that was verified
        self.torn = 0  # times that a committed slot's bytes did not fit its crc, yet or at all

    @classmethod
    def open(cls, path: Path) -> SegmentReader:
        """Maps an existing segment. Raises SegmentError if it is none, FileNotFoundError if there is no file."""
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < HEAD.size:
                raise SegmentError(f"{path} is too short for a ring segment")
            return cls(path, mmap.mmap(file.fileno(), 0))

    @property
    def state(self) -> State:
        """LIVE also where the word is none of them: then the end of its process ends the segment."""
        word = int(self._words[STATE_WORD])
        return State(word) if word in _STATES else State.LIVE

    def requests(self, limit: int = 1 << 16) -> npt.NDArray[Any]:
        """The records committed since the cursor, at most `limit`, as a structured array of engine.record."""
        count = self._committed(limit)
        if not count:
            return np.zeros(0, self._dtype)
        slots = self._slots_of(self._cursor, count)
        sums = (self._commits[slots] >> 32).tolist()
        # Fancy indexing copies: what is verified below can no longer change.
        payloads = self._slots[slots, 8:].reshape(-1)
        records = payloads.view(self._dtype)
        content = payloads.data
        position = self._checked_gaps
        good = 0
        for end, checksum in zip(records["gaps_end"].tolist(), sums, strict=True):
            payload = content[good * PAYLOAD_BYTES : (good + 1) * PAYLOAD_BYTES]
            # On a machine with weak store order the commit word may be seen before the payload: the next drain finds both.
            if crc32(payload, self._gap_sum(position, end)) != checksum:
                self.torn += 1
                break
            position = end
            good += 1
        self._checked_gaps = position
        self._cursor += good
        return records[:good]

    def gaps(self, until: int) -> npt.NDArray[Any]:
        """The gap words from the cursor to position `until` (the `gaps_end` of a record that was read)."""
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
            offset = (number & self.geometry.details - 1) * DETAIL_BYTES
            commit, size = words[offset >> 3], words[(offset >> 3) + 1]
            # The size is checked before it is used: a torn slot could name one beyond its lane.
            if commit & SEQUENCE_MASK != COMMITTED | number + 1 & NUMBER_MASK or size > DETAIL_MAX:
                break
            blob = bytes(self._details[offset + 16 : offset + 16 + size])
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
        """Returns the space of everything read to the writer. Only after the checkpoint that holds it.

        The lanes' pages are unmapped, as by the writer's trim(): this process does not grow to the size of the rings.
        """
        # From this store on the writer may overwrite the slots: what was read of them must be in a checkpoint by now.
        for word, cursor in enumerate(self.cursors(), TAIL_WORDS):
            self._words[word] = cursor
        layout = self._layout
        self._memory.madvise(mmap.MADV_DONTNEED, layout.requests, layout.size - layout.requests)

    def counters(self) -> list[int]:
        """All live counters, indexed by Counter."""
        found: list[int] = self._words[COUNTER_WORDS : COUNTER_WORDS + COUNTERS].tolist()
        # From the table, not from the counter: a kill between the two stores would leave the counter one short.
        found[Counter.REQUEST_DROPS] = int(self._drop_table().sum())
        return found

    def lag(self) -> npt.NDArray[Any]:
        """The lag histogram: reads by `lag_bucket`, since the worker's start."""
        return self._words[LAG_WORDS : LAG_WORDS + LAG_BUCKETS].copy()

    def close_ticks(self, end: int) -> int:
        """Closes the ticks below `end` for the worker. Returns the first tick that it may still increment."""
        self._words[BOUND_WORDS] = max(end, int(self._words[BOUND_WORDS]))
        return int(self._words[LEFT_WORD])

    def tick_rows(self, end: int) -> Iterator[tuple[int, int, int, npt.NDArray[np.uint32]]]:
        """(key, tick, series, counts) of every row that is not released and of a tick below `end`; counts are records.ticks'."""
        series, released = self.geometry.phases * self.geometry.targets, int(self._words[BOUND_WORDS + 1])
        for row, key in enumerate(self._tick_keys.tolist()):
            tick = (key >> SERIES_BITS) - 1
            if released <= tick < end and key & SERIES_MASK < series:
                yield key, tick, key & SERIES_MASK, self._tick_rows[row].copy()

    def release_ticks(self, end: int) -> None:
        """Lets the worker use the rows of ticks below `end` again. Only after the checkpoint that holds them."""
        self._words[BOUND_WORDS + 1] = max(end, int(self._words[BOUND_WORDS + 1]))

    def drops(self) -> npt.NDArray[Any]:
        """Slots of dropped records by [phase * targets + target][outcome], since the worker's start."""
        return self._drop_table().reshape(-1, OUTCOMES).copy()

    def leftovers(self) -> list[Leftover]:
        """The requests in flight that neither a record nor a drop is of. Of a living worker: about those in flight now.

        The worker clears an entry after it committed or dropped the record. Killed in between, it leaves an entry of
        the request that the newest record or the last drop is about.
        """
        table = self._words[self._layout.inflight_word : self._layout.drops_word].reshape(-1, ENTRY_WORDS)
        slots = np.flatnonzero(table[:, 0])
        entries = table[slots].tolist()
        # After the table was copied: a record that is committed in between explains its entry, not the other way round.
        recorded = self._recorded_last()
        found: list[Leftover] = []
        for slot, (key, intended, send, where) in zip(slots.tolist(), entries, strict=True):
            request, phase, target = (key >> 1) - 1, where >> 16, where & 0xFFFF
            known = phase < self.geometry.phases and (target < self.geometry.targets or target == NO_TARGET)
            if key > 1 and known and (request, phase) not in recorded:
                found.append(Leftover(request, intended, send, phase, target, slot, bool(key & 1)))
        return found

    def close(self) -> None:
        """Lets the mapping go; arrays that were returned are copies and stay."""
        self._detail_words.release()
        self._details.release()
        # mmap.close() raises BufferError while a view of it exists.
        del self._words, self._slots, self._commits, self._gap_lane, self._tick_keys, self._tick_rows
        self._memory.close()

    def _committed(self, limit: int) -> int:
        """How many slots from the cursor on are committed, at most `limit`.

        Looks at no more of the lane than it must: all its commit words are 1 ms and the lane's size in RSS.
        """
        limit = min(limit, self.geometry.requests)
        found, step = 0, 64
        while found < limit and self._holds(self._cursor + found + 1):
            start = self._cursor + found
            step = min(step, limit - found)
            numbers = np.arange(start + 1, start + step + 1) & NUMBER_MASK | COMMITTED
            fits = self._commits[self._slots_of(start, step)] & SEQUENCE_MASK == numbers.astype(np.uint64)
            if not fits.all():
                return found + int(fits.argmin())
            found += step
            # A drain of an idle worker reads 64 commit words, one of a full ring grows its step.
            step = min(step * 8, 4096)
        return found

    def _holds(self, number: int) -> bool:
        """Whether the record of this number is committed and still in its slot."""
        commit = int(self._commits[number - 1 & self.geometry.requests - 1])
        return commit & SEQUENCE_MASK == COMMITTED | number & NUMBER_MASK

    def _slots_of(self, start: int, count: int) -> npt.NDArray[Any]:
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

    def _drop_table(self) -> npt.NDArray[Any]:
        return self._words[self._layout.drops_word : self._layout.drops_word + self._layout.drops]

    def _recorded_last(self) -> set[tuple[int, int]]:
        """(request, phase) of the newest record and of the last drop that is in the drop table."""
        recorded = set()
        head = self._cursor + self._committed(self.geometry.requests)
        if self._holds(head):
            newest = self._slots[head - 1 & self.geometry.requests - 1, 8:].copy().view(self._dtype)[0]
            recorded.add((int(newest["request"]), int(newest["phase"])))
        request, phase, _, total = self._words[JOURNAL_WORDS : JOURNAL_WORDS + 4].tolist()
        if 0 < total <= self._drop_table().sum():
            recorded.add((request, phase))
        return recorded
