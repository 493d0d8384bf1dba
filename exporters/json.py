"""summary.json and intervals.jsonl: the report of a run, and one line per tick. The structs of collectors.snapshot.

intervals.jsonl is also the spool of the network exporters: lines are only added, in the order of their ticks; older ones
are in compressed parts (exporters.spool.parts). The one exception is a collector that was killed: its last line may be written again, with the same tick and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..collectors.series import Slab
from ..collectors.snapshot import ENCODER, Report, Snapshot
from ..engine.errors import OutputError
from ..engine.files import replace
from ..engine.runs.manifest import Manifest
from ..engine.runs.rundir import INTERVALS, SUMMARY
from .spool.ticks import TickFile


class IntervalLog(TickFile):
    """intervals.jsonl as a sink of the collector."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / INTERVALS)

    def blocks(self, snapshot: Snapshot, slab: Slab, manifest: Manifest) -> Iterator[bytes]:
        yield ENCODER.encode(snapshot) + b"\n"


def summary(report: Report) -> bytes:
    """The report as `lens run --json` prints it and summary.json holds it: readable, one line at the end."""
    return msgspec.json.format(ENCODER.encode(report), indent=1) + b"\n"


def write_summary(run_dir: Path, report: Report) -> None:
    """Replaces summary.json in one step. Raises OutputError."""
    try:
        replace(run_dir / SUMMARY, summary(report))
    except OSError as error:
        raise OutputError(f"cannot write {run_dir / SUMMARY}: {error.strerror}") from error
