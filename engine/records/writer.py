"""The worker's end of a ring segment (format: records.layout). Without numpy, which no worker loads.

How it works: records, gaps and details go into three lanes of fixed slots. Each lane has a head, the count of slots ever
written, which only this process knows, and a tail in shared memory, which only the reader moves. A slot is free while
head - tail is below the lane's size. A record becomes visible by the store of its commit word, the last of all: a
SIGKILL before it leaves a slot that the reader takes for unwritten, a SIGKILL after it has lost nothing. Beside the
lanes the in-flight table says which requests run, so that the collector can count them as lost when the worker died.
Costs per record are printed by benches/bench_ring.py.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

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
    GAPS_END,
    HEAD,
    JOURNAL_WORDS,
    LAG_WORDS,
    LEFT_WORD,
    MAGIC,
    NUMBER_MASK,
    OUTCOME,
    PHASE,
    REQUEST,
    SLOTS,
    STATE_WORD,
    TAIL_WORDS,
    TARGET,
    VERSION,
    Counter,
    Geometry,
    Layout,
    State,
)
from .record import OUTCOMES, RECORD, SLOT_BYTES
from .ticks import ROW_BYTES, TickWriter

_pack: Final = RECORD.pack


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
        self.counters = words[COUNTER_WORDS : COUNTER_WORDS + COUNTERS]
        self.lag = words[LAG_WORDS : LAG_WORDS + LAG_BUCKETS]
        self._table = words[layout.inflight_word : layout.inflight_word + geometry.inflight * ENTRY_WORDS]
        self._drops = words[layout.drops_word : layout.drops_word + layout.drops]
        self._journal = words[JOURNAL_WORDS : JOURNAL_WORDS + 4]
        self._tails = words[TAIL_WORDS : TAIL_WORDS + 3]
        self._requests = view[layout.requests : layout.requests + geometry.requests * SLOT_BYTES]
        self._request_words = self._requests.cast("Q")
        self._gaps = words[layout.gaps // 8 : layout.gaps // 8 + geometry.gaps]
        self._details = view[layout.details : layout.details + geometry.details * DETAIL_BYTES]
        self._detail_words = self._details.cast("Q")
        self.ticks = TickWriter(
            words[layout.tick_keys // 8 : layout.tick_keys // 8 + geometry.ticks],
            view[layout.tick_rows : layout.tick_rows + geometry.ticks * ROW_BYTES].cast("I"),
            words[BOUND_WORDS : BOUND_WORDS + 2],
            words[LEFT_WORD : LEFT_WORD + 1],
            geometry.phases * geometry.targets,
        )
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
            # A sparse file would do until the tmpfs is full: then the first store to a missing page is a SIGBUS (tmpfs(5)).
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
        memory[: HEAD.size] = HEAD.pack(MAGIC, VERSION, worker, incarnation, os.getpid(), *geometry)
        writer = cls(path, memory, geometry)
        writer._words[STATE_WORD] = State.LIVE
        # Last: whoever sees the name sees a complete head. The collector scans by name while workers start.
        temporary.rename(path)
        return writer

    def push(self, values: Sequence[int], gaps: array[int] | None) -> bool:
        """Commits one record, values in the order of FIELDS (`gaps_end` is filled in), with its gaps.

        False when the request lane is full: record and gaps are dropped and counted by series and outcome. When only
        the gap lane is full, the gaps are dropped and counted and the record is kept. Raises struct.error for values
        that the layout cannot hold; the segment is as before then.
        """
        head = self._request_head
        # The tail is read anew for each record: only the reader moves it, and only forward, so an old value is safe.
        if head - self._tails[0] > self._request_mask:
            self._drop(values, gaps)
            return False
        start = end = self._gap_head
        # All gaps of a record or none: half of them would be a distribution of the first half of a stream.
        if gaps and end + len(gaps) - self._tails[1] <= self._gap_mask + 1:
            end += len(gaps)
        fields = list(values)  # 0.3 us less than *values[:GAPS_END], end, ... (benches/bench_ring.py)
        fields[GAPS_END] = end
        # Packed in private memory: struct.error leaves the segment as it was.
        payload = _pack(*fields)
        checksum = 0
        if gaps:
            if end == start:
                self.counters[Counter.GAP_DROPS] += len(gaps)
            else:
                self._put_gaps(gaps, start)
                self._gap_head = end
                # The record commits its gaps too: a reader that sees the record sees the gaps as they were written.
                checksum = crc32(gaps)
        offset = (head & self._request_mask) * SLOT_BYTES
        word = offset >> 3
        words = self._request_words
        words[word] = 0
        # Word 0 first: this slot still holds the record of one lap ago, and half of either must never look committed.
        self._requests[offset + 8 : offset + SLOT_BYTES] = payload
        self._request_head = head = head + 1
        # One aligned 8-byte store, which no kill can cut in two.
        words[word] = crc32(payload, checksum) << 32 | COMMITTED | head & NUMBER_MASK
        return True

    def push_detail(self, blob: bytes) -> bool:
        """Commits one detail of at most DETAIL_MAX bytes, before the record it belongs to. False: dropped, counted."""
        head = self._detail_head
        if head - self._tails[2] > self._detail_mask or len(blob) > DETAIL_MAX:
            self.counters[Counter.DETAIL_DROPS] += 1
            return False
        offset = (head & self._detail_mask) * DETAIL_BYTES
        word = offset >> 3
        words = self._detail_words
        words[word] = 0
        words[word + 1] = len(blob)
        self._details[offset + 16 : offset + 16 + len(blob)] = blob
        self._detail_head = head = head + 1
        words[word] = crc32(blob) << 32 | COMMITTED | head & NUMBER_MASK
        return True

    def begin(self, slot: int, request: int, intended_ns: int, phase: int, target: int) -> None:
        """Enters a request into the in-flight table; the key word last, so that an entry is complete or absent."""
        table = self._table
        first = slot * ENTRY_WORDS
        table[first + 1] = intended_ns
        table[first + 2] = 0
        table[first + 3] = phase << 16 | target
        # request + 1, because request 0 must differ from a free entry; bit 0 is `sent`.
        table[first] = request + 1 << 1

    def sent(self, slot: int, send_ns: int) -> bool:
        """Marks the request as handed to send(). False if it was before, as before a retry."""
        table = self._table
        first = slot * ENTRY_WORDS
        known = table[first] & 1
        table[first + 2] = send_ns
        # The time before the bit: a kill in between leaves a request that counts as not sent, never one sent at 0.
        table[first] |= 1
        return not known

    def clear(self, slot: int) -> None:
        """Takes the request out, after its record was pushed."""
        self._table[slot * ENTRY_WORDS] = 0

    def trim(self) -> None:
        """Unmaps the lanes' pages, so that this process's memory does not grow to the ring's size; the data stays."""
        layout = self._layout
        # Of a shared mapping this drops the page table entries only, the file keeps its pages (madvise(2)).
        self._memory.madvise(mmap.MADV_DONTNEED, layout.requests, layout.size - layout.requests)

    def close(self, state: State = State.DONE) -> None:
        """Sets the final state. The mapping itself goes with the process."""
        self._words[STATE_WORD] = state

    def _put_gaps(self, gaps: array[int], head: int) -> None:
        start = head & self._gap_mask
        room = self._gap_mask + 1 - start
        lane = self._gaps
        if len(gaps) <= room:
            lane[start : start + len(gaps)] = gaps
        else:
            view = memoryview(gaps)
            lane[start:] = view[:room]
            lane[: len(gaps) - room] = view[room:]

    def _drop(self, values: Sequence[int], gaps: array[int] | None) -> None:
        """Counts what found no room. The store into the drop table is what makes it so: the journal before it tells
        the reader which in-flight entry that was, in case the worker is killed before it can clear it."""
        if gaps:
            self.counters[Counter.GAP_DROPS] += len(gaps)
        slots = values[SLOTS]
        self._dropped += slots
        journal = self._journal
        # 0 marks the journal as being written: a kill here leaves a journal that no sum can confirm.
        journal[3] = 0
        journal[0] = values[REQUEST]
        journal[1] = values[PHASE]
        journal[2] = slots
        journal[3] = self._dropped
        target = min(values[TARGET], self.geometry.targets - 1)  # NO_TARGET has no row of its own
        series = values[PHASE] * self.geometry.targets + target
        self._drops[series * OUTCOMES + values[OUTCOME]] += slots
        self.counters[Counter.REQUEST_DROPS] = self._dropped
