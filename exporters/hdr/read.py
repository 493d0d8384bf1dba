"""Reads an intervals.hlog: sums of its intervals, and percentile distributions as files.

The counts of an interval are ZigZag LEB128 numbers, negative ones runs of empty cells (HdrHistogram's V2 encoding). They
are decoded many lines at a time by numpy: a day of ticks has millions of lines.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...collectors.histogram import CELLS, DIGITS, HIGHEST, LOWEST, Histogram
from ...engine.errors import OutputError
from ...engine.metrics import SCALES
from ..spool.parts import lines_of
from .write import INTERVALS, TOTALS

BATCH: Final = 2048  # lines decoded at once
COMPRESSED: Final = 0x1C849304  # cookies of V2, word size and base masked as readers do
PLAIN: Final = 0x1C849303
_WORD_SIZE: Final = 0xF0
_OUTER: Final = struct.Struct(">iI")
_INNER: Final = struct.Struct(">iIIIqqd")
_VARINT_MAX: Final = 8  # bytes; the ninth of LEB128-64b9B has another form, for counts beyond 2**55

Ints = npt.NDArray[np.int64]


class Line(NamedTuple):
    """One interval of one tag; times in seconds since BaseTime."""

    tag: str
    start_s: float
    length_s: float
    encoded: str

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_s


def line_of(text: str) -> Line | None:
    """An interval line with a tag; None for any other line, and for one that is not complete."""
    if not text.startswith("Tag=") or not text.endswith("\n"):
        return None
    parts = text[4:-1].split(",")
    try:
        return Line(parts[0], float(parts[1]), float(parts[2]), parts[4])
    except (IndexError, ValueError):
        return None


class Sums:
    """Histograms that lines are added to, by any key. Damaged and foreign histograms are passed over."""

    def __init__(self) -> None:
        self._waiting: dict[object, list[bytes]] = {}
        self._counts: dict[object, Ints] = {}

    def add(self, key: object, encoded: str) -> None:
        numbers = numbers_of(encoded)
        if numbers:
            waiting = self._waiting.setdefault(key, [])
            waiting.append(numbers)
            if len(waiting) >= BATCH:
                self._settle(key)

    def histogram(self, key: object) -> Histogram:
        """The sum under this key; empty if there was none."""
        self._settle(key)
        counts = self._counts.get(key)
        return Histogram() if counts is None else Histogram.from_cells(np.flatnonzero(counts), counts[counts > 0])

    def all(self) -> dict[object, Histogram]:
        """Every key's sum."""
        return {key: self.histogram(key) for key in dict.fromkeys([*self._counts, *self._waiting])}

    def _settle(self, key: object) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = np.zeros(CELLS, np.int64)
            np.add.at(counts, *cells_of(waiting))


def sums(path: Path, wanted: Iterable[str] | None = None) -> dict[str, Histogram]:
    """The sum of each wanted tag's intervals (None: all tags); a damaged line is passed over."""
    tags = None if wanted is None else set(wanted)
    found = Sums()
    for raw in lines_of(path):
        text = raw.decode("utf-8", "replace")
        if tags is not None and text[4 : text.find(",")] not in tags:
            continue
        line = line_of(text)
        if line is not None:
            found.add(line.tag, line.encoded)
    return {str(tag): total for tag, total in found.all().items()}


def filled(encoded: str) -> list[tuple[float, int]]:
    """The filled cells of one encoded histogram: the middle value of each, in histogram units, and its count."""
    numbers = numbers_of(encoded)
    if not numbers:
        return []
    values, counts = values_and_counts(Histogram.from_cells(*cells_of([numbers])))
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def values_and_counts(total: Histogram) -> tuple[npt.NDArray[np.float64], Ints]:
    """The filled cells of a histogram: the middle value of each and its count."""
    cells = np.flatnonzero(total.counts)
    return Histogram.middles(cells + total.first), total.counts[cells]


def write_distributions(run_dir: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Writes `<metric>-<target>.hgrm` for each tag, in the metric's unit; yields each path and its count of values."""
    log = next((run_dir / each for each in (TOTALS, INTERVALS) if (run_dir / each).exists()), None)
    if log is None:
        raise OutputError(f"{run_dir} has no {INTERVALS}")
    for tag, total in sums(log).items():
        path = folder / (re.sub(r"[^\w.-]", "-", tag) + ".hgrm")
        with path.open("wb") as file:
            total.hdr().output_percentile_distribution(file, SCALES.get(re.split("[./]", tag)[0], 1.0))
        yield path, total.count


def numbers_of(encoded: str) -> bytes:
    """The ZigZag LEB128 numbers of an encoded histogram; empty if it is damaged, foreign or empty."""
    try:
        packed = binascii.a2b_base64(encoded, strict_mode=True)
        cookie, size = _OUTER.unpack_from(packed)
        plain = zlib.decompress(packed[_OUTER.size : _OUTER.size + size])
        inner, length, offset, digits, lowest, highest, _ = _INNER.unpack_from(plain)
    except (binascii.Error, struct.error, zlib.error):
        return b""
    ours = (cookie & ~_WORD_SIZE, inner & ~_WORD_SIZE, offset, digits, lowest, highest)
    if ours != (COMPRESSED & ~_WORD_SIZE, PLAIN & ~_WORD_SIZE, 0, DIGITS, LOWEST, HIGHEST):
        return b""
    numbers = plain[_INNER.size : _INNER.size + length]
    return numbers if len(numbers) == length and length and numbers[-1] < 0x80 else b""


def cells_of(parts: list[bytes]) -> tuple[Ints, Ints]:
    """The filled cells and their counts of several histograms, one after the other."""
    data = np.frombuffer(b"".join(parts), np.uint8)
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _VARINT_MAX:
        raise OutputError("a histogram of the log holds a count beyond 2**55")
    positions = np.arange(len(data)) - np.repeat(starts, lengths)
    zigzag = np.add.reduceat((data & 0x7F).astype(np.int64) << (7 * positions), starts)
    numbers = (zigzag >> 1) ^ -(zigzag & 1)
    steps = np.where(numbers < 0, -numbers, 1)
    reached = np.cumsum(steps) - steps
    begins = np.searchsorted(starts, np.cumsum([0, *(len(part) for part in parts[:-1])]))
    reached -= np.repeat(reached[begins], np.diff(np.concatenate((begins, [len(starts)]))))
    kept = (numbers > 0) & (reached < CELLS)
    return reached[kept], numbers[kept]
