"""Reads an intervals.hlog into one histogram per tag, fast enough for a day of ticks.

`hdrhistogram` decodes a line in 130 us; a day of 5 targets has a million of them. Only the sum per tag is wanted here,
so a line's counts are added to an array without making a histogram of it: 12 us, and equal (tests/test_html.py).
Format: HdrHistogram V2 encoding, https://github.com/HdrHistogram/HdrHistogram (zlib, then ZigZag LEB128 of counts, a
negative number stands for that many empty buckets).
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_latency_lens.collectors.snapshot import SCALES
from llm_latency_lens.engine.errors import OutputError

HEAD: Final = 8  # cookie and length of the compressed part
PLAIN_HEAD: Final = 40
LOWEST: Final = 1_000
HIGHEST: Final = 3_600_000_000_000

Counts = npt.NDArray[np.int64]


def add_line(encoded: str, counts: Counts) -> None:
    """Adds one encoded histogram's counts. Raises ValueError for what is none."""
    try:
        payload = zlib.decompress(base64.b64decode(encoded)[HEAD:])[PLAIN_HEAD:]
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not an encoded histogram: {error}") from None
    index = shift = word = 0
    for byte in payload:
        word |= (byte if shift == 56 else byte & 0x7F) << shift
        if byte & 0x80 and shift < 56:
            shift += 7
            continue
        number = (word >> 1) ^ -(word & 1)
        word = shift = 0
        if number < 0:
            index -= number
        else:
            if number:
                counts[index] += number
            index += 1


def sums(path: Path, wanted: Iterable[str]) -> dict[str, Counts]:
    """The run total of each wanted tag that the log has; a line that is not whole is passed over."""
    from hdrh.histogram import HdrHistogram

    size = HdrHistogram(LOWEST, HIGHEST, 3).counts_len
    tags = set(wanted)
    totals: dict[str, Counts] = {}
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("Tag="):
                continue
            tag, _, rest = line[4:].partition(",")
            if tag not in tags or not line.endswith("\n"):
                continue
            try:
                add_line(rest.rsplit(",", 1)[-1].strip(), totals.setdefault(tag, np.zeros(size, np.int64)))
            except (ValueError, IndexError):
                continue
    return totals


def tags_of(path: Path) -> list[str]:
    """All tags of the log, in the order of their first line."""
    tags: dict[str, None] = {}
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Tag="):
                tags.setdefault(line[4:].partition(",")[0])
    return list(tags)


def write_distributions(run_dir: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Writes `<metric>-<target>.hgrm` for each tag, in the metric's unit; gives each path and its count of values."""
    from hdrh.histogram import HdrHistogram

    log = run_dir / "intervals.hlog"
    if not log.exists():
        raise OutputError(f"{run_dir} has no intervals.hlog")
    for tag, counts in sums(log, tags_of(log)).items():
        histogram: Any = HdrHistogram(LOWEST, HIGHEST, 3)
        for index in np.nonzero(counts)[0]:
            histogram.record_value(histogram.get_value_from_index(int(index)), int(counts[index]))
        path = folder / (re.sub(r"[^\w.-]", "-", tag) + ".hgrm")
        with path.open("wb") as file:
            histogram.output_percentile_distribution(file, SCALES.get(tag.partition("/")[0], 1.0))
        yield path, int(counts.sum())


def bucket_values() -> npt.NDArray[np.float64]:
    """The value each index of the counts stands for: the middle of its bucket."""
    from hdrh.histogram import HdrHistogram

    histogram: Any = HdrHistogram(LOWEST, HIGHEST, 3)
    low = np.array([histogram.get_value_from_index(i) for i in range(histogram.counts_len)], np.float64)
    width = np.diff(low, append=low[-1] + (low[-1] - low[-2]))
    return low + width / 2
