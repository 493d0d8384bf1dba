"""Chosen fields of the rows of requests.msgpack, fast enough for a million of them: all rows, or an even sample.

A row is a map of over 15 keys that begins with `request`. These bytes cannot occur inside a text, which is UTF-8, so rows
are found without decoding what lies between them: a sample costs the same for any size of the file.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ..engine.runs.rundir import REQUESTS

BLOCK_BYTES: Final = 1 << 20  # read at once
SAMPLES: Final = 64  # places of a large file that a sample is taken from
_row_start = re.compile(rb"\xde\x00.\xa7request", re.DOTALL)

T = TypeVar("T", bound=msgspec.Struct)


def parts(run_dir: Path) -> list[Path]:
    """The files of the rows in order; empty where none were kept."""
    found = [*sorted(run_dir.glob("requests.*.msgpack")), run_dir / REQUESTS]
    return [path for path in found if path.exists() and path.stat().st_size]


def rows(run_dir: Path, kind: type[T]) -> Iterator[T]:
    """Every row as a `kind`, which names the fields that are decoded; damaged and torn rows are left out."""
    decode = msgspec.msgpack.Decoder(kind).decode
    for path in parts(run_dir):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _decoded(content, 0, len(content), decode)


def sample(run_dir: Path, kind: type[T], count: int) -> Iterator[T]:
    """About `count` rows, from evenly spaced places of each file; all of them where there are not many more."""
    decode = msgspec.msgpack.Decoder(kind).decode
    files = parts(run_dir)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            size = len(content)
            row_bytes = max(1, _row_bytes(content))
            wanted = max(1, round(count * size / total))
            if size <= 2 * wanted * row_bytes:
                yield from _decoded(content, 0, size, decode)
                continue
            length = max(row_bytes * wanted // SAMPLES, 2 * row_bytes)
            for k in range(SAMPLES):
                start = (size - length) * k // max(1, SAMPLES - 1)
                yield from _decoded(content, start, min(size, start + length), decode)


def _row_bytes(content: mmap.mmap) -> int:
    """The mean size of the first rows."""
    head = content[: min(len(content), BLOCK_BYTES)]
    found = len(_row_start.findall(head))
    return len(head) // found if found else len(head)


def _decoded(content: mmap.mmap, start: int, end: int, decode: Callable[[bytes], T]) -> Iterator[T]:
    at = _row_start.search(content, start, end)
    while at:
        following = _row_start.search(content, at.end(), end)
        # a row may be torn by a kill, cut by the sample's end, or damaged
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield decode(content[at.start() : following.start() if following else end])
        at = following
