"""Reads a run directory: its report, its ticks, its requests, of a finished run or of one that goes on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgpack

from ..collectors.snapshot import REPORT_DECODER, SNAPSHOT_DECODER, Report, Snapshot
from ..engine.errors import OutputError
from ..engine.files import UNDECODABLE
from ..engine.runs.rundir import INTERVALS, LIVE, LIVE_REPORT, REPEAT, REQUESTS, SUMMARY
from .spool.parts import lines_of

READ_BYTES: Final = 1 << 20
DAMAGE: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def finished(run_dir: Path) -> bool:
    return (run_dir / SUMMARY).exists()


def read_report(run_dir: Path) -> Report:
    """summary.json, or what is known so far of a run that is still going. Raises OutputError."""
    for path in (run_dir / SUMMARY, run_dir / LIVE / LIVE_REPORT):
        try:
            return REPORT_DECODER.decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except UNDECODABLE as error:
            raise OutputError(f"{path} is damaged: {error}") from None
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}") from None
    if not run_dir.is_dir():
        raise OutputError(f"{run_dir} is not a directory; give a run's directory, such as runs/latest")
    if (run_dir / REPEAT).exists():
        raise OutputError(f"{run_dir} holds repeated runs: name one of them, or lens compare {run_dir}")
    raise OutputError(f"{run_dir} has no summary.json; if its run was killed: lens recover {run_dir}")


def ticks(run_dir: Path) -> Iterator[Snapshot]:
    """The complete lines of intervals.jsonl, one at a time. Raises OutputError, with the line that is damaged."""
    path = run_dir / INTERVALS
    number = 0
    try:
        for line in lines_of(path):
            number += 1
            yield SNAPSHOT_DECODER.decode(line)
    except FileNotFoundError:
        raise OutputError(f"{run_dir} has no {INTERVALS}") from None
    except UNDECODABLE as error:
        raise OutputError(f"{path} is damaged at line {number}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:  # a compressed part
        raise OutputError(f"{path} is damaged after line {number}: {error}") from None


def requests(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The request maps of all parts of requests.msgpack in order, one at a time; stops before a torn last one.

    Raises OutputError, with the byte at which a part is damaged.
    """
    parts = [*sorted(run_dir.glob("requests.*.msgpack")), run_dir / REQUESTS]
    if not any(part.exists() for part in parts):
        raise OutputError(f"{run_dir} has no {REQUESTS}; was it run with output.records: false?")
    for part in parts:
        if part.exists():
            with part.open("rb") as file:
                yield from _rows(part, msgpack.Unpacker(file, raw=False, read_size=READ_BYTES))


def _rows(part: Path, unpacker: Any) -> Iterator[dict[str, Any]]:
    at = 0
    while True:
        try:
            row = unpacker.unpack()
        except msgpack.OutOfData:
            return
        except (ValueError, msgpack.UnpackException) as error:
            raise OutputError(f"{part} is damaged at byte {at}: {error or type(error).__name__}") from None
        if not isinstance(row, dict):
            raise OutputError(f"{part} is damaged at byte {at}: not a request")
        yield row
        at = unpacker.tell()


@contextmanager
def damage_named(run_dir: Path) -> Iterator[None]:
    """Whatever a reader makes of damaged content is one OutputError that names the run: a value of another type or
    size passes a decoder and fails only where it is used."""
    try:
        yield
    except DAMAGE as error:
        raise OutputError(f"{run_dir} is damaged: {type(error).__name__}: {error}") from error
