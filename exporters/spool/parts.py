"""A log that grows for weeks: the newest part under its own name, older ones compressed, every byte at a fixed offset.

`intervals.jsonl` is the newest; what came before is in `intervals.<start>-<end>.jsonl.gz`, named by the offsets of its
bytes in the complete log, so that readers go on where they were, whatever was rotated meanwhile.
"""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from .append import AppendFile

PART_BYTES: Final = 64 << 20
PART_S: Final = 86_400.0
LEVEL: Final = 6


class Part(NamedTuple):
    """A closed part: the bytes [start, end) of the log."""

    start: int
    end: int
    path: Path

    def open(self) -> BinaryIO:
        """Its plain bytes."""
        return cast(BinaryIO, gzip.open(self.path, "rb")) if self.path.suffix == ".gz" else self.path.open("rb")


def parts_of(path: Path) -> list[Part]:
    """The closed parts of the log whose newest is `path`, oldest first. A part that is being compressed is listed once."""
    found: dict[int, Part] = {}
    for each in sorted(path.parent.glob(f"{path.stem}.*-*")):
        span = each.name[len(path.stem) + 1 :].partition(".")[0].split("-")
        if each.name.endswith((path.suffix, f"{path.suffix}.gz")) and len(span) == 2 and all(map(str.isdigit, span)):
            found[int(span[0])] = Part(int(span[0]), int(span[1]), each)  # .gz sorts last
    return [found[start] for start in sorted(found)]


def lines_of(path: Path) -> Iterator[bytes]:
    """All complete lines of the log, its closed parts first. Raises FileNotFoundError if there is none."""
    closed = parts_of(path)
    for part in closed:
        with part.open() as file:
            yield from file
    if closed and not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


class View:
    """The log's bytes from `base` to `size`, read by their offsets in the complete log. Closed by its `with`."""

    def __init__(self, base: int, size: int, *, fd: int = -1, content: bytes = b"") -> None:
        self.base = base
        self.size = size
        self._fd = fd
        self._content = content

    def pread(self, count: int, offset: int) -> bytes:
        if self._fd >= 0:
            return os.pread(self._fd, count, offset - self.base)
        return self._content[offset - self.base : offset - self.base + count]

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def view_at(path: Path, offset: int) -> View:
    """The part of the log that holds `offset`, or the newest. Raises FileNotFoundError while there is none."""
    while True:
        closed = parts_of(path)
        held = next((part for part in closed if part.start <= offset < part.end), None)
        if held is not None:
            try:
                with held.open() as file:
                    return View(held.start, held.end, content=file.read())
            except FileNotFoundError:  # compressed just now
                continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not closed:
                raise
            return View(closed[-1].end, closed[-1].end)
        view = View(closed[-1].end if closed else 0, 0, fd=fd)
        view.size = view.base + os.fstat(fd).st_size
        if [part.start for part in parts_of(path)] == [part.start for part in closed]:
            return view
        view.__exit__()  # rotated between the two looks


class PartFile:
    """The writer: an AppendFile that is closed, compressed and followed by another when it is full or a day old."""

    def __init__(self, path: Path, *, part_bytes: int = PART_BYTES, part_s: float = PART_S) -> None:
        self._path = path
        self._part_bytes = part_bytes
        self._part_s = part_s
        self._file = AppendFile(path)
        self._base = 0  # offset of the newest part's first byte
        self._started_s = 0.0
        self._failures = 0
        self._packer: threading.Thread | None = None

    @property
    def failures(self) -> int:
        return self._failures + self._file.failures

    @property
    def fresh(self) -> bool:
        """Is the newest part still empty?"""
        return not self._file.size and not self._file.waiting

    def write(self, block: bytes) -> None:
        self._file.write(block)

    def flush(self) -> None:
        self._file.flush()

    def turn(self, now_s: float) -> None:
        """Between two ticks, when what is written is safe: begins another part if it is time to."""
        full = self._file.size >= self._part_bytes or now_s - self._started_s >= self._part_s
        if not full or not self._file.size or self._file.waiting:
            return
        try:
            os.replace(self._path, self._closed(self._base, self._base + self._file.size))
        except OSError:
            self._failures += 1
            return
        self._base += self._file.size
        self._file.restart()
        self._started_s = now_s
        self._pack()

    def position(self) -> list[int]:
        return [self._base, self._file.size]

    def rewind(self, position: list[int]) -> None:
        """Also over a rotation: the part that was the newest then becomes it again."""
        self._base, size = position or [0, 0]
        for part in parts_of(self._path):
            if part.start >= self._base:
                try:
                    self._reopen(part)
                except OSError:
                    self._failures += 1
        self._file.rewind(size)

    def close(self) -> None:
        self._file.flush()
        self._file.close()
        self._wait()
        self._pack()  # what was closed while the packer was busy
        self._wait()

    def _wait(self) -> None:
        if self._packer is not None:
            self._packer.join()

    def _reopen(self, part: Part) -> None:
        if part.start == self._base:
            temporary = self._path.with_name(f".{self._path.name}.back")
            with part.open() as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            temporary.replace(self._path)
        for path in (self._closed(part.start, part.end), _packed(self._closed(part.start, part.end))):
            path.unlink(missing_ok=True)

    def _closed(self, start: int, end: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{start:015d}-{end:015d}{self._path.suffix}")

    def _pack(self) -> None:
        """Compresses what is not yet, in a thread of its own; also what an earlier process left plain."""
        plain = [part.path for part in parts_of(self._path) if part.path.suffix != ".gz"]
        if plain and (self._packer is None or not self._packer.is_alive()):
            self._packer = threading.Thread(target=_pack_all, args=(plain,), name="pack", daemon=True)
            self._packer.start()


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _pack_all(paths: list[Path]) -> None:
    for path in paths:
        temporary = path.with_name(f".{path.name}.gz")
        try:
            with path.open("rb") as source, gzip.open(temporary, "wb", LEVEL) as sink:
                shutil.copyfileobj(source, sink)
            temporary.replace(_packed(path))
            path.unlink()
        except OSError:  # a full disk: it stays as it is, and is tried again
            temporary.unlink(missing_ok=True)
