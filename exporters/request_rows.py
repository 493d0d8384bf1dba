"""Chosen fields of the rows of requests.msgpack, fast enough for a million of them: all rows, or an even sample.

A row is a map of over 15 keys that begins with `request`. These bytes cannot occur inside a text, which is UTF-8, so rows
are found without decoding what lies between them: a sample costs the same for any size of the file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from ..engine.runs.rundir import REQUESTS

BLOCK_BYTES: Final = 1 << 20  # read at once
SAMPLES: Final = 64  # places of a large file that a sample is taken from
MARKER: Final = b"\xde\x00.\xa7request"
_row_start = re.compile(MARKER, re.DOTALL)

T = TypeVar("T", bound=msgspec.Struct)


def parts(run_dir: Path) -> list[Path]:
    """The files of the rows in order; empty where none were kept."""
    found = [*sorted(run_dir.glob("requests.*.msgpack")), run_dir / REQUESTS]
    return [path for path in found if path.exists() and path.stat().st_size]


def rows(run_dir: Path, kind: type[T]) -> Iterator[T]:
    """Every row as a `kind`, which names the fields that are decoded; damaged and torn rows are left out."""
    decode = msgspec.msgpack.Decoder(kind).decode
    for path in parts(run_dir):
        with path.open("rb") as file:
            yield from _decoded(file, decode)


def sample(run_dir: Path, kind: type[T], count: int) -> Iterator[T]:
    """About `count` rows, from evenly spaced places of each file; all of them where there are not many more."""
    decode = msgspec.msgpack.Decoder(kind).decode
    files = parts(run_dir)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            row_bytes = max(1, _row_bytes(file.read(BLOCK_BYTES)))
            file.seek(0)
            wanted = max(1, round(count * size / total))
            if size <= 2 * wanted * row_bytes:
                yield from _decoded(file, decode)
                continue
            length = max(row_bytes * wanted // SAMPLES, 2 * row_bytes)
            for k in range(SAMPLES):
                file.seek((size - length) * k // max(1, SAMPLES - 1))
                yield from _decoded(io.BytesIO(file.read(length)), decode)


def _row_bytes(head: bytes) -> int:
    """The mean size of the first rows."""
    found = len(_row_start.findall(head))
    return len(head) // found if found else len(head)


def _decoded(file: BinaryIO, decode: Callable[[bytes], T]) -> Iterator[T]:
    """The rows of a file, a block in memory at a time. A map that is larger than a block is carried on until it ends."""
    rest = b""
    while True:
        block = file.read(BLOCK_BYTES)
        content = rest + block
        starts = [found.start() for found in _row_start.finditer(content)]
        ends = starts[1:] if block else [*starts[1:], len(content)]
        for start, end in zip(starts, ends, strict=False):
            # a row may be torn by a kill, cut by the sample's end, or damaged
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                yield decode(content[start:end])
        if not block:
            return
        rest = content[starts[-1] :] if starts else content[-len(MARKER) :]
