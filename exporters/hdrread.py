"""Reads an intervals.hlog: the run's total of each tag, and its percentile distributions as files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_latency_lens.collectors.snapshot import SCALES
from llm_latency_lens.engine.errors import OutputError

LOWEST: Final = 1_000
HIGHEST: Final = 3_600_000_000_000
DIGITS: Final = 3


def sums(path: Path, wanted: Iterable[str] | None = None) -> dict[str, Any]:
    """The sum of each wanted tag's intervals (None: all tags) as a HdrHistogram; a damaged line is passed over."""
    from hdrh.histogram import HdrHistogram

    tags = None if wanted is None else set(wanted)
    totals: dict[str, Any] = {}
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for line in file:
            tag, _, rest = line.removeprefix("Tag=").partition(",")
            if not line.startswith("Tag=") or not line.endswith("\n") or (tags is not None and tag not in tags):
                continue
            total = totals.get(tag) or totals.setdefault(tag, HdrHistogram(LOWEST, HIGHEST, DIGITS))
            _add(total, rest.rsplit(",", 1)[-1].strip())
    return totals


def _add(total: Any, encoded: str) -> None:
    from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException

    try:
        total.decode_and_add(encoded)
    except (HdrCookieException, HdrHistogramSettingsException, HdrLengthException, ValueError, zlib.error):
        return


def values_and_counts(total: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The filled buckets of a histogram: the middle value of each and its count."""
    filled = [(v.value_iterated_to, v.count_added_in_this_iter_step) for v in total.get_recorded_iterator()]
    values = [(total.get_lowest_equivalent_value(v) + v) / 2 for v, _ in filled]
    return np.array(values, np.float64), np.array([n for _, n in filled], np.int64)


def write_distributions(run_dir: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Writes `<metric>-<target>.hgrm` for each tag, in the metric's unit; gives each path and its count of values."""
    log = run_dir / "intervals.hlog"
    if not log.exists():
        raise OutputError(f"{run_dir} has no intervals.hlog")
    for tag, total in sums(log).items():
        path = folder / (re.sub(r"[^\w.-]", "-", tag) + ".hgrm")
        with path.open("wb") as file:
            total.output_percentile_distribution(file, SCALES.get(tag.partition("/")[0], 1.0))
        yield path, total.get_total_count()
