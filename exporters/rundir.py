"""Reads a run directory: its report, its ticks, its requests. Whole runs and ones that are still going."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..collectors.snapshot import REPORT_DECODER, SNAPSHOT_DECODER, Report, Snapshot
from ..engine.errors import OutputError
from ..engine.runs.rundir import LIVE
from .spool.parts import lines_of

READ_BYTES = 1 << 20


def finished(run_dir: Path) -> bool:
    return (run_dir / "summary.json").exists()


def read_report(run_dir: Path) -> Report:
    """summary.json, or what is known so far of a run that is still going. Raises OutputError."""
    for path in (run_dir / "summary.json", run_dir / LIVE / "report.json"):
        try:
            return REPORT_DECODER.decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except msgspec.DecodeError as error:
            raise OutputError(f"{path} is not a lens summary: {error}") from None
    if not run_dir.is_dir():
        raise OutputError(f"{run_dir} is not a directory; give a run's directory, such as runs/latest")
    raise OutputError(f"{run_dir} has no summary.json; if its run was killed: lens recover {run_dir}")


def ticks(run_dir: Path) -> Iterator[Snapshot]:
    """The complete lines of intervals.jsonl, one at a time."""
    try:
        for line in lines_of(run_dir / "intervals.jsonl"):
            yield SNAPSHOT_DECODER.decode(line)
    except FileNotFoundError:
        raise OutputError(f"{run_dir} has no intervals.jsonl") from None
    except msgspec.DecodeError as error:
        raise OutputError(f"{run_dir / 'intervals.jsonl'} is damaged: {error}") from None


def requests(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The request maps of all parts of requests.msgpack in order, one at a time; stops before a torn last one."""
    import msgpack

    parts = [*sorted(run_dir.glob("requests.*.msgpack")), run_dir / "requests.msgpack"]
    if not any(part.exists() for part in parts):
        raise OutputError(f"{run_dir} has no requests.msgpack; was it run with output.records: false?")
    for part in parts:
        if part.exists():
            with part.open("rb") as file:
                yield from msgpack.Unpacker(file, raw=False, read_size=READ_BYTES)
