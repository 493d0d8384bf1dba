"""What survives a SIGKILL of the collector: its totals, its position in every ring and in every file. One writer.

The file `checkpoint` of the segment directory is a base and what came after it:

    frame   magic u32 | length u32 | crc32 u32 | payload (msgpack of `Frame`)
    file    one base frame, then any number of delta frames

A frame's `state` is complete and replaces the one before; `closed` has the numbers of the ticks closed since then, which
are added up; `open` those of ticks that still run, which replace the ones before. The base has the totals of all ticks
before it as one, and their ladders; the ticks after it go through the ladders again, which makes the same of them. So a tick costs what changed in it
and not what the run has seen. A frame cut short by a SIGKILL fails its checksum, ends the file, and is overwritten by
the next. When the deltas outgrow the base, a new base goes into a second file that takes the first one's name: there is
a complete one at every moment. tmpfs needs no fsync: what a process has written survives the process.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ..engine.files import write_at
from .run_ladders import RunLadders
from .series import Slab
from .server_window import PageWindow

FILE: Final = "checkpoint"
REBASE_BYTES: Final = 4 << 20  # deltas up to this size are kept beside the smallest base
_HEADER: Final = struct.Struct("<III")
_MAGIC: Final = 0x4C4C_4C31


class SegmentState(msgspec.Struct, kw_only=True):
    """How far one ring was read."""

    cursors: tuple[int, int, int] = (0, 0, 0)
    drops: list[tuple[int, int, int]] = []  # (series, outcome, count) seen so far


class Health(msgspec.Struct, kw_only=True):
    """What is summed or kept beside the totals, over every incarnation of the collector."""

    steal: int = 0
    total: int = 0
    retransmits: int = 0
    retransmits_known: bool = False
    rss_mb_max: float = 0.0
    segment_ticks: int = 0  # in which every segment kept its own stamp
    read_ticks: int = 0
    read_spans: list[tuple[int, int]] = []  # CLOCK_MONOTONIC ns, adjoining ones as one, the first SPANS_KEPT
    watched_ns: int = 0  # what the sums of `host` are over
    host: dict[str, int] = {}  # by the names of health.HOST_SUMS
    ticks: int = 0  # measured ones whose health is known
    limited_ticks: int = 0
    harmed_ticks: int = 0
    limited_by: dict[str, int] = {}
    limited_spans: list[tuple[int, int]] = []  # as read_spans
    export_failures: int = 0
    records_dropped: int = 0


class Progress(msgspec.Struct, kw_only=True):
    next_tick: int = 0
    done: bool = False  # the last tick is in the totals
    segments: dict[str, SegmentState] = {}
    retired: list[str] = []  # segment files that are fully in the totals; they are removed, or about to be
    counters: dict[int, list[int]] = {}  # sums over the retired segments of a worker
    lag: bytes = b""  # loop lag counts of all retired segments
    sinks: list[list[int]] = []
    errors: list[tuple[int, int, str, int | None]] = []  # target, outcome, latest message, HTTP status
    details: list[tuple[int, bytes]] = []  # (worker, blob) whose record has not come yet
    rows: list[tuple[str, int, bytes]] = []  # tick rows as last read: segment, key, counts (collectors.live)
    pending: list[
        tuple[int, int, int, bytes]
    ] = []  # tick, phase, target, counts that were read before their tick closed
    servers: dict[str, PageWindow] = {}  # by URL
    health: Health = msgspec.field(default_factory=Health)


class Frame(msgspec.Struct, kw_only=True):
    state: Progress
    totals: list[Any] | None = None  # Slab.packed(), of a base frame
    ladders: list[Any] = []  # RunLadders.packed(), of a base frame
    closed: list[tuple[int, list[Any]]] = []  # (tick, Slab.packed()), ascending
    open: list[tuple[int, list[Any]]]


class Saved(msgspec.Struct):
    """What `load` returns."""

    state: Progress
    totals: Any  # Slab
    ladders: Any  # RunLadders
    open: dict[int, Any]  # tick -> Slab


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Frame)


class Checkpoint:
    """The file. `load` once, then `save` per tick; OSError leaves the last complete frame in force."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._base_bytes = 0
        self._end = 0

    def load(self) -> Saved | None:
        """The last complete frame with everything before it, or None if there is none."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        saved: Saved | None = None
        for frame, end in _frames(content):
            if saved is None or frame.totals is not None:
                totals, ladders = Slab.unpacked(frame.totals or []), RunLadders.unpacked(frame.ladders)
            else:
                totals, ladders = saved.totals, saved.ladders
            for tick, packed in frame.closed:
                slab = Slab.unpacked(packed)
                totals.add(slab)
                ladders.add(tick, slab)
            opened = {tick: Slab.unpacked(packed) for tick, packed in frame.open}
            saved = Saved(frame.state, totals, ladders, opened)
            self._base_bytes = self._base_bytes or end
            self._end = end
        return saved

    def save(
        self,
        state: Progress,
        *,
        closed: Sequence[tuple[int, Slab]],
        totals: Slab,
        ladders: RunLadders,
        opened: dict[int, Slab],
    ) -> None:
        """Makes this moment the one to come back to. `closed` ticks came to `totals` and `ladders` since the last save."""
        running = [(tick, slab.packed()) for tick, slab in opened.items()]
        removed = (
            self._file >= 0 and not os.fstat(self._file).st_nlink
        )  # the file was unlinked; a restarted collector could not reopen it
        if removed or not self._base_bytes or self._end - self._base_bytes > max(REBASE_BYTES, 2 * self._base_bytes):
            self._rebase(_framed(Frame(state=state, totals=totals.packed(), ladders=ladders.packed(), open=running)))
        else:
            ticks = [(tick, slab.packed()) for tick, slab in closed]
            self._append(_framed(Frame(state=state, closed=ticks, open=running)))

    def rebase_next(self) -> None:
        """The next save writes everything, whatever `closed` says."""
        self._base_bytes = 0

    def _append(self, frame: bytes) -> None:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        write_at(self._file, frame, self._end)
        self._end += len(frame)

    def _rebase(self, frame: bytes) -> None:
        temporary = self.path.with_name(f".{self.path.name}.new")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_at(file, frame, 0)
            temporary.replace(self.path)
        except BaseException:
            os.close(file)
            raise
        self.close()
        self._file, self._base_bytes, self._end = file, len(frame), len(frame)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        """As AppendFile: a collector that failed drops it without closing it."""
        self.close()


def _framed(frame: Frame) -> bytes:
    payload = _ENCODER.encode(frame)
    return _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _frames(content: bytes) -> Any:
    """(frame, where it ends) for every complete frame, up to the first that is not."""
    at = 0
    while at + _HEADER.size <= len(content):
        magic, length, checksum = _HEADER.unpack_from(content, at)
        payload = content[at + _HEADER.size : at + _HEADER.size + length]
        if magic != _MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
            return
        at += _HEADER.size + length
        yield _DECODER.decode(payload), at
