"""Interval logs written by the HdrHistogram library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from llm_latency_lens.exporters.hdr import read as hdrread


def write_hlog(folder: Path, values: dict[str, list[list[int]]]) -> dict[str, Any]:
    """An interval log of the given ns values per tag and tick, and the library's own sum per tag."""
    sums: dict[str, Any] = {}
    with (folder / "intervals.hlog").open("w") as file:
        file.write(
            '#[Histogram log format version 1.3]\n"StartTimestamp","Interval_Length","Interval_Max","Histogram"\n'
        )
        for tag, ticks in values.items():
            sums[tag] = HdrHistogram(hdrread.LOWEST, hdrread.HIGHEST, 3)
            for tick, numbers in enumerate(ticks):
                h = HdrHistogram(hdrread.LOWEST, hdrread.HIGHEST, 3)
                for number in numbers:
                    h.record_value(number)
                    sums[tag].record_value(number)
                file.write(f"Tag={tag},{tick}.000,1.000,0.0,{h.encode().decode()}\n")
    return sums
