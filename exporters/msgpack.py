"""requests.msgpack: one map per request, streamed, capped and rotated.

Maps follow one another without a frame (`msgpack.Unpacker` reads them). Metrics have the names of engine.metrics; marks are
ms after `intended`, absent values nil. The newest part is `requests.msgpack`; an older one has the number of its first
row in its name (`requests.000000120000.msgpack`), so that names sort in order. When all parts outgrow the cap, the
oldest goes, and its rows are counted as dropped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from ..collectors.measures import Column
from ..collectors.series import Batch, Slab
from ..collectors.snapshot import Report, Snapshot
from ..engine.metrics import METRICS, SCALES
from ..engine.records.layout import SLOT_MASK
from ..engine.records.record import (
    ABORT_PLANNED,
    CLOCK_STEPPED,
    LOCAL_TOKENS,
    RETRANSMITS_UNKNOWN,
    REUSED,
    STALE_RESENT,
    STREAMED,
    TLS,
    TTFT_COALESCED,
    UNKNOWN,
    USER_CLOCK,
    Outcome,
    Unsent,
)
from ..engine.runs.manifest import Manifest
from ..engine.runs.rundir import REQUESTS
from .spool.append import AppendFile
from .token_times import Chooser, Times, token_times

PARTS: Final = 8  # the cap is spread over so many files
PENDING_MAX_BYTES: Final = 16 << 20

_OUTCOMES: Final = np.array([outcome.name.lower() for outcome in Outcome], object)
_REASONS: Final = np.array([None, *(reason.name.lower() for reason in Unsent if reason)], object)
_MARKS: Final = (
    "dequeued",
    "connect_start",
    "dns_done",
    "tcp_done",
    "tls_done",
    "send",
    "last_send",
    "headers",
    "first_event",
    "first_token",
    "first_output",
    "last_token",
    "end",
)
_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_PLAIN: Final = (
    "slots",
    "worker",
    "attempts",
    "session",
    "turn",
    "events",
    "token_events",
    "coalesced",
    "empty_events",
)
_BYTES: Final = ("sent_bytes", "received_bytes")
_FLAGS: Final = (
    ("reused", REUSED),
    ("tls", TLS),
    ("streamed", STREAMED),
    ("user_clock", USER_CLOCK),
    ("clock_stepped", CLOCK_STEPPED),
    ("ttft_coalesced", TTFT_COALESCED),
    ("stale_resent", STALE_RESENT),
    ("abort_planned", ABORT_PLANNED),
    ("local_tokens", LOCAL_TOKENS),
)
_DETAILS: Final = ("message", "request_id", "finish")
_TIMES: Final = ("token_ns", "token_coalesced")  # only where the plan says output.token_times
_TEXT: Final = "text"  # of the reply, thoughts first; only where the plan says workload.keep_replies

Objects = npt.NDArray[np.object_]


_METRICS: Final = tuple(name for name in METRICS if name != "itl_ms")
KEYS: Final = (
    *("request", "phase", "target", "wall_time_ns", "outcome", "unsent", "http_status"),
    *_PLAIN,
    *_TOKENS,
    *_BYTES,
    "tcp_retransmits",
    *(f"{mark}_ms" for mark in _MARKS),
    *_METRICS,
    *(name for name, _ in _FLAGS),
    *_DETAILS,
    _TEXT,
    *_TIMES,
)
# A struct, not a dict: making and encoding a row is 6 us instead of 27 (benches/bench_histogram.py).
Row: Final = msgspec.defstruct("Row", KEYS, gc=False)


def rows(batch: Batch, manifest: Manifest, timed: Chooser | None = None) -> list[Any]:
    """The batch as one `Row` per request, in its order; it encodes as a map of KEYS. `timed` chooses those that get
    the arrival times of their tokens."""
    columns = _columns(batch, manifest)
    times: list[Times | None] = token_times(batch, timed) if timed else [None] * len(batch.records)
    for i, name in enumerate(_TIMES):
        columns[name] = [None if each is None else each[i] for each in times]
    return list(map(Row, *(columns[key] for key in KEYS)))


def _columns(batch: Batch, manifest: Manifest) -> dict[str, list[Any]]:
    records, plan = batch.records, manifest.plan
    intended = records["intended_ns"].astype(np.int64)
    wall = np.where(intended > 0, intended + (manifest.anchor_wall_ns - manifest.anchor_mono_ns), 0)
    phases = np.array([phase.name for phase in plan.phases], object)
    targets = np.array([*(target.name for target in plan.targets), None], object)
    columns = {
        "request": (records["request"] & np.uint64(SLOT_MASK)).tolist(),
        "phase": phases[records["phase"]].tolist(),
        "target": targets[np.minimum(records["target"], len(plan.targets))].tolist(),
        "wall_time_ns": _some(intended > 0, wall),
        "outcome": _OUTCOMES[records["outcome"]].tolist(),
        "unsent": _REASONS[records["unsent"]].tolist(),
        "http_status": _some(records["http_status"] > 0, records["http_status"]),
    }
    columns |= {name: records[name].tolist() for name in _PLAIN}
    columns |= {name: _some(records[name] != UNKNOWN, records[name]) for name in _TOKENS}
    columns |= {name: records[name].tolist() for name in _BYTES}
    retransmits = records["tcp_retransmits"]
    columns["tcp_retransmits"] = _some(retransmits != RETRANSMITS_UNKNOWN, retransmits)
    columns |= {f"{mark}_ms": _mark(records, mark, intended) for mark in _MARKS}
    columns |= {name: _metric(name, batch.columns.get(name), len(records)) for name in _METRICS}
    columns |= {name: ((records["flags"] & bit) != 0).tolist() for name, bit in _FLAGS}
    return columns | _details(batch, texts=plan.workload.keep_replies)


def _details(batch: Batch, *, texts: bool) -> dict[str, list[Any]]:
    if not batch.details:
        return {name: [None] * len(batch.records) for name in (*_DETAILS, _TEXT)}
    keys = zip(batch.records["phase"].tolist(), batch.records["request"].tolist(), strict=True)
    found = [batch.details.get(key) for key in keys]
    columns: dict[str, list[Any]] = {
        name: [None if detail is None else getattr(detail, name) or None for detail in found] for name in _DETAILS
    }
    return columns | {_TEXT: [detail.text if texts and detail is not None else None for detail in found]}


def _mark(records: npt.NDArray[np.void], mark: str, intended: npt.NDArray[np.int64]) -> list[float | None]:
    at = records[f"{mark}_ns"]
    return _some((at > 0) & (intended > 0), (at.astype(np.int64) - intended) / 1e6)


def _metric(name: str, column: Column | None, rows: int) -> list[float | None]:
    if column is None:
        return [None] * rows
    has, value = column
    return _some(has, value / SCALES[name])


def _some(has: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> list[Any]:
    made: Objects = values.astype(object)
    made[~has] = None
    column: list[Any] = made.tolist()
    return column


class RequestLog:
    """requests.msgpack as a sink of the collector."""

    def __init__(self, run_dir: Path, *, max_bytes: int, timed: Chooser | None = None) -> None:
        self.directory = run_dir
        self.part_bytes = max(1, max_bytes // PARTS)
        self.max_bytes = max_bytes
        self._timed = timed
        self._encoder = msgspec.msgpack.Encoder()
        self._file = AppendFile(run_dir / REQUESTS, pending_max_bytes=PENDING_MAX_BYTES)
        self._first = 0  # number of the newest part's first row
        self._rows = 0  # rows in all parts so far, gone ones included
        self._failures = 0
        self._dropped = 0
        self._trimmed = 0  # rows in parts that are gone

    @property
    def failures(self) -> int:
        return self._failures + self._file.failures

    @property
    def dropped(self) -> int:
        return self._dropped + self._file.dropped

    def rows(self, batch: Batch, manifest: Manifest) -> None:
        maps = rows(batch, manifest, self._timed)
        self._file.write(b"".join(map(self._encoder.encode, maps)), count=len(maps))

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        if self._file.size >= self.part_bytes and self._file.waiting:
            self._rotate()
        self._flush()

    def _flush(self) -> None:
        waiting = self._file.waiting
        if self._file.flush():
            self._rows += waiting

    def _rotate(self) -> None:
        """The newest part gets its number; the oldest go until the cap holds. A disk that refuses is asked again."""
        try:
            os.replace(self.directory / REQUESTS, self._part(self._first))
            self._file.restart()
            self._first = self._rows
            self._trim()
        except OSError:
            self._failures += 1
        self._count_trimmed()

    def _trim(self) -> None:
        numbered = parts(self.directory)
        sizes = [path.stat().st_size for path in numbered]
        while len(numbered) > 1 and sum(sizes) + self.part_bytes > self.max_bytes:
            numbered.pop(0).unlink()
            sizes.pop(0)

    def _count_trimmed(self) -> None:
        """By what is there, the number of the oldest row left: a SIGKILL between two deletes miscounts nothing."""
        oldest = next((_first_row(part) for part in parts(self.directory)), self._first)
        self._dropped += oldest - self._trimmed
        self._trimmed = oldest

    def _part(self, first: int) -> Path:
        return self.directory / f"requests.{first:012d}.msgpack"

    def position(self) -> list[int]:
        return [self._first, self._rows, self._file.size, self._file.waiting, self._trimmed]

    def rewind(self, position: list[int]) -> None:
        """Also over a rotation: the part that was the newest then becomes it again."""
        self._first, self._rows, size, lost, self._trimmed = position or [0, 0, 0, 0, 0]
        self._dropped += lost  # they waited in the memory of an incarnation that is gone
        try:
            if self._part(self._first).exists():
                os.replace(self._part(self._first), self.directory / REQUESTS)
            for part in parts(self.directory):
                if _first_row(part) >= self._first:
                    part.unlink()
        except OSError:
            self._failures += 1
        self._file.rewind(size)
        self._count_trimmed()

    def close(self, report: Report) -> None:
        self._file.write(b"", count=0)  # a run without a row has an empty file, not none
        self._flush()
        self._file.close()


def parts(run_dir: Path) -> list[Path]:
    """The closed parts in order, without the newest (`requests.msgpack`)."""
    return sorted(run_dir.glob("requests.*.msgpack"))


def _first_row(part: Path) -> int:
    return int(part.name.split(".")[1])
