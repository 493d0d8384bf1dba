"""Reads the rings of all workers, of every incarnation of each: what was committed since the last read, and which have ended.

Opening, draining and retiring only; what the records mean is collectors.series' business. Nothing is released to a
writer before the collector says that a checkpoint holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..engine.errors import SegmentError
from ..engine.records.lag import LAG_BUCKETS
from ..engine.records.layout import SLOT_MASK, TURN_MAX, TURN_SHIFT, Counter, State
from ..engine.records.reader import SegmentReader
from ..engine.records.record import UNKNOWN, left_behind_values, record_dtype
from .checkpoint import Progress, SegmentState
from .measures import Records

PATTERN: Final = "worker-*.ring"
_ENDED: Final = (State.DONE, State.DEAD)


class Drained(NamedTuple):
    """What one drain of one segment returned. `owners[i]` is the index in `records` of the request that `gaps[i]` is of."""

    worker: int
    records: Records
    gaps: npt.NDArray[np.uint64]
    owners: npt.NDArray[np.int64]
    details: list[bytes]
    drops: npt.NDArray[np.int64]  # new ones, [series][outcome]
    alive_ns: int  # the worker's last heartbeat, CLOCK_MONOTONIC


class Segment:
    """One ring file being read."""

    def __init__(self, path: Path, state: SegmentState | None, *, sessions: bool) -> None:
        """Continues from `state`. Raises SegmentError if the file is not a segment (yet)."""
        self._sessions = sessions
        self.path = path
        self.reader = SegmentReader.open(path)
        self.worker = self.reader.worker
        self.ended = False  # drained completely, its last requests recorded
        self._drops = np.zeros_like(self.reader.drops(), dtype=np.int64)
        if state is not None:
            self.reader.seek(state.cursors)
            for series, outcome, count in state.drops:
                self._drops[series, outcome] = count

    def drain(self, *, orphaned: bool) -> Drained:
        """What was committed since the last drain. `orphaned`: no process writes here any more.

        The segment's state is read before its records: one that had ended before and then returns no record has none.
        """
        state = self.reader.state
        over = state in _ENDED or orphaned
        before = self.reader.cursors()[1]
        records = self.reader.requests()
        self.ended = over and not len(records)
        gaps = self.reader.gaps(int(records["gaps_end"][-1])) if len(records) else np.zeros(0, np.uint64)
        owners = _owners(records, before, len(gaps))
        details = self.reader.details()
        if self.ended:
            records = self._last_requests(dead=state != State.DONE)
        drops = self.reader.drops().astype(np.int64)
        new, self._drops = drops - self._drops, drops
        alive_ns = self.reader.counters()[Counter.HEARTBEAT_NS]
        return Drained(self.worker, records, gaps, owners, details, new, alive_ns)

    def _last_requests(self, *, dead: bool) -> Records:
        """Records for the requests that a worker left behind: lost if they were sent and it died."""
        left = [
            left_behind_values(
                request=entry.request,
                intended_ns=entry.intended_ns,
                send_ns=entry.send_ns,
                phase=entry.phase,
                target=entry.target,
                worker=self.worker,
                sent=entry.sent,
                dead=dead,
                # a session's number is the slot that it began with (workload.sessions)
                session=entry.request & SLOT_MASK & UNKNOWN if self._sessions else 0,
                turn=entry.request >> TURN_SHIFT & TURN_MAX,  # a damaged entry has any bits there
            )
            for entry in self.reader.leftovers()
        ]
        return np.array(left, record_dtype())

    def saved(self) -> SegmentState:
        cells = np.argwhere(self._drops)
        seen = [(int(series), int(outcome), int(self._drops[series, outcome])) for series, outcome in cells]
        return SegmentState(cursors=self.reader.cursors(), drops=seen)


def _owners(records: Records, before: int, gaps: int) -> npt.NDArray[np.int64]:
    counts = np.diff(np.concatenate(([before], records["gaps_end"].astype(np.int64))))
    owners = np.repeat(np.arange(len(records)), counts)
    assert len(owners) == gaps
    return owners


class Intake:
    """All segments of a run."""

    def __init__(self, segment_dir: Path, saved: Progress, *, sessions: bool = False) -> None:
        self.directory = segment_dir
        self._sessions = sessions  # does the plan ask sessions? Then a request left behind is one of them
        self.segments: dict[str, Segment] = {}
        self.retired = list(saved.retired)
        self.counters = {worker: list(counts) for worker, counts in saved.counters.items()}
        self._saved = dict(saved.segments)
        self._retired_lag = np.frombuffer(saved.lag, np.int64).copy() if saved.lag else None

    def scan(self) -> None:
        """Opens the segments that have appeared; removes those that a checkpoint already holds completely."""
        for path in sorted(self.directory.glob(PATTERN)):
            # Killed between checkpoint and unlink: reading it again would count its records twice.
            if path.name in self.retired:
                path.unlink(missing_ok=True)
            elif path.name not in self.segments:
                try:
                    self.segments[path.name] = Segment(path, self._saved.get(path.name), sessions=self._sessions)
                except (SegmentError, FileNotFoundError):
                    continue  # not complete yet, or gone again: the next scan sees

    def drain(self, *, finished: bool) -> Iterator[Drained]:
        """What is new in every segment. `finished`: the supervisor says that no worker is left."""
        for segment in self.segments.values():
            # A SIGKILLed worker leaves the state LIVE; only the end of its process says that no more comes.
            orphaned = finished and not _alive(segment.reader.pid)
            while not segment.ended:
                yield segment.drain(orphaned=orphaned)
                if not (orphaned or segment.reader.state in _ENDED):
                    break

    @property
    def done(self) -> bool:
        """Nothing is left to read in what was found."""
        return all(segment.ended for segment in self.segments.values())

    def save(self, state: Progress) -> None:
        """Puts the position in every ring into `state`; segments that have ended become sums."""
        # Cursors only of what still lives: those that ended are sums from now on, and their files go after the checkpoint.
        state.segments = {name: each.saved() for name, each in self.segments.items() if not each.ended}
        ended = {name: each for name, each in self.segments.items() if each.ended}
        state.retired = self.retired + sorted(ended)
        state.counters = self.counters_by_worker(ended_only=True)
        state.lag = self.lag(ended_only=True).tobytes()

    def release(self) -> None:
        """After the checkpoint: returns the read slots to the writers and closes what has ended."""
        for name, segment in list(self.segments.items()):
            if segment.ended:
                self._retire(name, segment)
            else:
                segment.reader.release()

    def _retire(self, name: str, segment: Segment) -> None:
        self.counters = self.counters_by_worker(only=name)
        self._retired_lag = self._retired_plus(segment.reader.lag().astype(np.int64))
        self.retired.append(name)
        del self.segments[name]
        # The lag and the counters were added before: the mapping goes now.
        segment.reader.close()
        segment.path.unlink(missing_ok=True)

    def counters_by_worker(self, *, ended_only: bool = False, only: str | None = None) -> dict[int, list[int]]:
        """Each counter summed over the incarnations of a worker: all, the ended ones, or the retired ones and `only`."""
        sums = {worker: list(counts) for worker, counts in self.counters.items()}
        for name, segment in self.segments.items():
            if (ended_only and not segment.ended) or (only is not None and name != only):
                continue
            counts = segment.reader.counters()
            known = sums.setdefault(segment.worker, [0] * len(counts))
            sums[segment.worker] = [before + now for before, now in zip(known, counts, strict=True)]
        return sums

    def lag(self, *, ended_only: bool = False) -> npt.NDArray[np.int64]:
        """The loop lag histogram (records.lag.lag_value has its bounds) over every incarnation of every worker."""
        total = self._retired_plus(np.zeros(LAG_BUCKETS, np.int64))
        for segment in self.segments.values():
            if segment.ended or not ended_only:
                total += segment.reader.lag().astype(np.int64)
        return total

    def _retired_plus(self, more: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return more.copy() if self._retired_lag is None else more + self._retired_lag


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It exists, under another user: `lens recover` as root and the run as a service.
    except PermissionError:
        return True
    return True
