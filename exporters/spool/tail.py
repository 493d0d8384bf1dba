"""Follows a run's tick log and delivers it: `Tail` reads, `Pump` delivers. The log is the spool, the cursor a receipt.

`intervals.jsonl` is on disk already, so a destination that is down costs nothing but a cursor that stands still. The
cursor file moves only after a destination took the ticks; after a crash of anybody the same ticks are sent again, which
destinations make harmless (same timestamps, same tags). Cursor file (JSON, replaced atomically):

    offset      bytes of the tick log that are exported or given up
    marks       the last of those lines, [start, end, crc32]: how a rewound log is noticed
    skipped     [start, end) ranges given up because more than `max_pending_bytes` waited: the newest, the oldest stay
    delivered, dropped, unreadable, rejected, failures    ticks, and failed attempts to deliver
    error       the last failure in words, without secrets

A collector that is restarted truncates the log to its checkpoint and writes the last ticks again: `read` notices by the
marks and goes back to the last line that is still the same.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from ...collectors.snapshot import SNAPSHOT_DECODER, Report, Snapshot
from ...engine.errors import OutputError
from ...engine.files import UNDECODABLE, replace
from ..backoff import backoff_s
from ..rundir import finished, read_report
from .parts import View, view_at

MARKS: Final = 16
READ_BYTES: Final = 1 << 20
MAX_PENDING_BYTES: Final = 1 << 30
Item = TypeVar("Item")  # what a line of the log is
END: Final = 1 << 62  # an offset past everything: the newest part


class Unavailable(Exception):
    """The destination did not take it now and may later. The message holds no secret."""


class Refused(OutputError):
    """The destination takes nothing until somebody changes something: token, bucket. The message names the way out."""


class Rejected(OutputError):
    """The destination will never take these ticks, and may take others."""


class Destination(Protocol[Item]):
    """Where ticks go. Sending it the same ticks again changes nothing there. An exporter inherits what it does not need."""

    name: str
    keeps_cursor: bool = True  # False: what it holds is in memory, so it reads the log from the start every time

    def check(self, run: str) -> None:
        """Before any load: raises Refused for what somebody must change, Unavailable if it is merely down."""
        return  # said, because mypy takes an empty body for an abstract method

    def write(self, ticks: list[Item]) -> None:
        """Raises Unavailable or Refused (tried again later) or Rejected (counted and passed over)."""

    def end(self, report: Report) -> None:
        """The run is over and all its ticks were taken: its statistics with their intervals. Raises like `write`."""
        return

    def restart(self) -> None:
        """The log was rewound: forget sums made of earlier ticks."""
        return

    def linger(self, limit_s: float) -> None:
        """After the last tick: waits at most `limit_s` for those who fetch by themselves."""
        return

    def close(self) -> None: ...


class Cursor(msgspec.Struct, kw_only=True):
    """See the module's docstring."""

    offset: int = 0
    marks: list[tuple[int, int, int]] = msgspec.field(default_factory=list)
    skipped: list[tuple[int, int]] = msgspec.field(default_factory=list)
    delivered: int = 0
    dropped: int = 0
    unreadable: int = 0
    rejected: int = 0
    failures: int = 0
    error: str = ""


class LineTail(Generic[Item]):
    """Reads the complete lines of a growing log behind the cursor. One reader per cursor file."""

    def __init__(
        self,
        path: Path,
        cursor_path: Path | None,
        decode: Callable[[bytes], Item],
        *,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        self._path = path
        self._decoder = decode
        self._cursor_path = cursor_path  # None: in memory only, every start is from the beginning
        self._max_pending = max_pending_bytes
        self._next: list[tuple[int, int, int]] = []  # what the last read() returned, to be confirmed by advance()
        self._bad = 0
        self.cursor = _load(cursor_path)
        self.rewound = False  # set by the read() that found the log truncated or rewritten

    def read(self, limit_bytes: int = READ_BYTES) -> list[Item]:
        """The next ticks, at most about `limit_bytes` of them, at least one line if there is one. Moves nothing."""
        self.rewound = False
        self._next, self._bad = [], 0
        try:
            with view_at(self._path, self.cursor.offset) as view:
                self._go_back_if_rewound(view)
                return self._lines(view, limit_bytes)
        except FileNotFoundError:
            return []

    def advance(self, *, delivered: int = 0, rejected: int = 0) -> None:
        """Confirms what the last read() returned and saves the cursor."""
        cursor = self.cursor
        if not self._next:
            return
        cursor.offset = self._next[-1][1]
        cursor.marks = [*cursor.marks, *self._next][-MARKS:]
        cursor.skipped = [span for span in cursor.skipped if span[1] > cursor.offset]
        cursor.delivered += delivered
        cursor.rejected += rejected
        cursor.unreadable += self._bad
        self._next, self._bad = [], 0
        self.save()

    def save(self) -> None:
        if self._cursor_path is None:
            return
        with suppress(OSError):  # full disk: after a restart some ticks are sent again, which is harmless
            replace(self._cursor_path, msgspec.json.encode(self.cursor))

    def pending_bytes(self) -> int:
        try:
            with view_at(self._path, END) as view:
                return max(0, view.size - self.cursor.offset)
        except FileNotFoundError:
            return 0

    def _go_back_if_rewound(self, view: View) -> None:
        cursor = self.cursor
        while cursor.marks:
            start, end, crc = cursor.marks[-1]
            if start < view.base:  # in a closed part, which never changes
                break
            if end <= view.size and zlib.crc32(view.pread(end - start, start)) == crc:
                break
            cursor.marks.pop()
            self.rewound = True
        if self.rewound or cursor.offset > view.size:
            self.rewound = True
            cursor.offset = cursor.marks[-1][1] if cursor.marks else 0
            cursor.skipped = [span for span in cursor.skipped if span[1] <= cursor.offset]

    def bound(self) -> None:
        """While the destination is away: gives up the newest lines above `max_pending_bytes` and counts them."""
        try:
            with view_at(self._path, END) as view:
                self._bound(view)
        except FileNotFoundError:
            pass
        self.save()

    def _bound(self, view: View) -> None:
        cursor = self.cursor
        known = max([cursor.offset, *(end for _, end in cursor.skipped)])
        spans = [(max(start, cursor.offset), end) for start, end in cursor.skipped if end > cursor.offset]
        waiting = known - cursor.offset - sum(end - start for start, end in spans)
        room = self._max_pending - waiting
        if view.size - known <= room:
            return
        floor = max(known, view.base)  # closed parts are not given up
        start = _line_end_before(view, max(floor, known + max(0, room)), floor)
        end = _line_end_before(view, view.size, start)
        if end <= start:
            return
        cursor.dropped += _newlines(view, start, end)
        if cursor.skipped and cursor.skipped[-1][1] == start:
            start, _ = cursor.skipped.pop()
        cursor.skipped.append((start, end))

    def _lines(self, view: View, limit_bytes: int) -> list[Item]:
        ticks: list[Item] = []
        position = self._jump(self.cursor.offset)
        want = limit_bytes
        while view.base <= position < view.size:
            stop = min([view.size, *(start for start, _ in self.cursor.skipped if start > position)])
            chunk = view.pread(min(want, stop - position), position)
            complete = chunk.rfind(b"\n") + 1
            if not complete:
                if len(chunk) < want or stop == position + len(chunk):
                    break  # a line still being written
                want *= 2
                continue
            for line in chunk[:complete].splitlines(keepends=True):
                self._next.append((position, position + len(line), zlib.crc32(line)))
                position += len(line)
                self._decode(line, ticks)
            if ticks:
                break
            position = self._jump(position)
        return ticks

    def _decode(self, line: bytes, ticks: list[Item]) -> None:
        try:
            ticks.append(self._decoder(line))
        except UNDECODABLE:
            self._bad += 1

    def _jump(self, position: int) -> int:
        for start, end in self.cursor.skipped:
            if start <= position < end:
                position = end
        return position


class Tail(LineTail[Snapshot]):
    """Of the tick log."""

    def __init__(
        self, path: Path, cursor_path: Path | None = None, *, max_pending_bytes: int = MAX_PENDING_BYTES
    ) -> None:
        super().__init__(path, cursor_path, SNAPSHOT_DECODER.decode, max_pending_bytes=max_pending_bytes)


class Pump(Generic[Item]):
    """Moves ticks from one tail to one destination until the run is over. One thread; no peer's fault raises here.

    `give_up_s`: how long after the run's end an absent destination is waited for. `interval_s`: pause after a write that
    left nothing waiting; the run's last ticks go at once.
    """

    def __init__(
        self,
        tail: LineTail[Item],
        destination: Destination[Item],
        *,
        run_dir: Path,
        poll_s: float = 0.25,
        give_up_s: float = 60.0,
        interval_s: float = 0.0,
        backoff: Callable[[int], float] = backoff_s,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.tail = tail
        self.destination = destination
        self.stop = threading.Event()
        self._run_dir = run_dir
        self._poll_s = poll_s
        self._give_up_s = give_up_s
        self._interval_s = interval_s
        self._backoff = backoff
        self._log = log
        self._failed = 0  # in a row
        self._retry_at = 0.0
        self.rest_until = 0.0  # monotonic(); 0.0 before the first rest

    def run(self, *, follow: bool = True) -> bool:
        """Delivers until the run has ended (`follow`) or the log's present end; True if everything was delivered."""
        ended_at: float | None = None
        while not self.stop.is_set():
            ended = not follow or finished(self._run_dir)  # asked before reading: the log is complete by then
            ended_at = (ended_at or monotonic()) if ended else None
            moved = (ended or monotonic() >= self.rest_until) and self._step()
            if ended and not moved and self._failed == 0 and self._end():
                return True
            if ended_at is not None and self._failed and monotonic() - ended_at > self._give_up_s:
                self._log(f"{self.destination.name}: gave up with {self.tail.pending_bytes():,} bytes not delivered")
                return False
            if not moved:
                self.stop.wait(self._pause_s())
        return False

    def _pause_s(self) -> float:
        return min(self._poll_s, max(0.01, self._retry_at - monotonic())) if self._failed else self._poll_s

    def _step(self) -> bool:
        """One batch; True if there may be more at once."""
        if monotonic() < self._retry_at:
            return False
        ticks = self.tail.read()
        if self.tail.rewound:
            self.destination.restart()
        if not ticks:
            self.tail.advance()
            self._failed = 0
            return False
        try:
            self.destination.write(ticks)
        except (Unavailable, Refused) as error:
            self._wait(str(error))
            return False
        except Rejected as error:
            self._note(str(error))
            self.tail.advance(rejected=len(ticks))
            return True
        if self._failed:
            self._log(f"{self.destination.name}: back after {self._failed} attempts")
        self._failed = 0
        self.tail.advance(delivered=len(ticks))
        if self._interval_s and not self.tail.pending_bytes():
            self.rest_until = monotonic() + self._interval_s
        return True

    def _end(self) -> bool:
        """After the last tick: delivers the summary, if there is one. False if it is to be tried again."""
        if not finished(self._run_dir):
            return True
        try:
            self.destination.end(read_report(self._run_dir))
        except (Unavailable, Refused) as error:
            self._wait(str(error))
            return False
        except OutputError as error:  # it was rejected, or is damaged
            self._note(str(error))
        return True

    def _wait(self, why: str) -> None:
        self._failed += 1
        self._retry_at = monotonic() + self._backoff(self._failed)
        self._note(why)
        self.tail.bound()

    def _note(self, why: str) -> None:
        self.tail.cursor.failures += 1
        if why != self.tail.cursor.error:
            self._log(f"{self.destination.name}: {why}")
        self.tail.cursor.error = why


def cursor_path(run_dir: Path, index: int, kind: str) -> Path:
    """Where the cursor of the plan's `index`-th export is kept."""
    return run_dir / f".export-{index}-{kind}.json"


def cursors(run_dir: Path) -> dict[str, Cursor]:
    """All cursors of a run by file name: what was delivered, dropped and failed."""
    return {path.name: _load(path) for path in sorted(run_dir.glob(".export-*.json"))}


def _load(path: Path | None) -> Cursor:
    if path is None:
        return Cursor()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Cursor)
    except (OSError, *UNDECODABLE):
        return Cursor()


def _line_end_before(view: View, position: int, floor: int) -> int:
    """The end of the last complete line that ends at or before `position`, not before `floor`."""
    step = READ_BYTES
    while position > floor:
        start = max(floor, position - step)
        at = view.pread(position - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        position = start
    return floor


def _newlines(view: View, start: int, end: int) -> int:
    total = 0
    while start < end:
        chunk = view.pread(min(READ_BYTES, end - start), start)
        if not chunk:
            break
        total += chunk.count(b"\n")
        start += len(chunk)
    return total
