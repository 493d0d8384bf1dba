"""summary.json and intervals.jsonl: the report of a run, and one line per tick. The structs of collectors.snapshot.

intervals.jsonl is also the spool of the network exporters: lines are only added, in the order of their ticks; older ones
are in compressed parts (exporters.spool.parts). The one exception is a collector that was killed: its last line may be written again, with the same tick and time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..collectors.series import Batch, Slab
from ..collectors.snapshot import ENCODER, Report, Snapshot
from ..engine.errors import OutputError
from ..engine.files import replace
from ..engine.runs.manifest import Manifest
from ..engine.runs.rundir import INTERVALS, SUMMARY
from .spool.parts import PartFile


class IntervalLog:
    """intervals.jsonl as a sink of the collector. While the disk is full, up to 64 MB of lines wait in memory."""

    def __init__(self, run_dir: Path) -> None:
        self._file = PartFile(run_dir / INTERVALS)

    @property
    def failures(self) -> int:
        return self._file.failures

    dropped = 0  # counts request rows, and this file has none

    def rows(self, batch: Batch, manifest: Manifest) -> None:
        """Nothing: requests are in requests.msgpack."""

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        self._file.turn(snapshot.elapsed_s)
        self._file.write(ENCODER.encode(snapshot) + b"\n")
        self._file.flush()

    def position(self) -> list[int]:
        return self._file.position()

    def rewind(self, position: list[int]) -> None:
        self._file.rewind(position)

    def close(self, report: Report) -> None:
        self._file.close()


def summary(report: Report) -> bytes:
    """The report as `lens run --json` prints it and summary.json holds it: readable, one line at the end."""
    return msgspec.json.format(ENCODER.encode(report), indent=1) + b"\n"


def write_summary(run_dir: Path, report: Report) -> None:
    """Replaces summary.json in one step. Raises OutputError."""
    try:
        replace(run_dir / SUMMARY, summary(report))
    except OSError as error:
        raise OutputError(f"cannot write {run_dir / SUMMARY}: {error.strerror}") from error
