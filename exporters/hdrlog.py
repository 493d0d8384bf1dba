"""intervals.hlog: an HdrHistogram interval log, version 1.3, as the standard Java and Python readers take it.

One line per tick, metric and target of the measured phases, `Tag=<metric>/<target>`. Values are histogram units
(ns; micro-tokens/s; 10 pico-USD), the max column is in the metric's own unit. Times are relative to BaseTime. The sum
of a tag's intervals is the run's total, count for count.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llm_latency_lens.collectors.series import NOBODY, Batch, Key, Series, Slab
from llm_latency_lens.collectors.snapshot import METRICS, SCALES, Report, Snapshot
from llm_latency_lens.engine.manifest import Manifest
from llm_latency_lens.exporters.partfile import PartFile

INTERVALS: Final = "intervals.hlog"
_LEGEND: Final = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
_UNFIT: Final = re.compile(r"[,\s]")  # what would end a tag


class IntervalHistograms:
    """intervals.hlog as a sink of the collector."""

    def __init__(self, run_dir: Path) -> None:
        self._file = PartFile(run_dir / INTERVALS)

    @property
    def failures(self) -> int:
        return self._file.failures

    dropped = 0  # counts request rows, and this file has none

    def rows(self, batch: Batch, manifest: Manifest) -> None:
        """Nothing: this is a log of ticks."""

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        self._file.turn(snapshot.elapsed_s)
        if self._file.fresh:  # every part is a log of its own
            self._file.write(header(manifest).encode())
        plan = manifest.plan
        for target, name in [*enumerate(each.name for each in plan.targets), (NOBODY, "")]:
            series = slab.only(lambda key, target=target: _counts(manifest, key, target))  # type: ignore[misc]  # default
            for line in lines(series, name, snapshot):
                self._file.write(line.encode())
        self._file.flush()

    def position(self) -> list[int]:
        return self._file.position()

    def rewind(self, position: list[int]) -> None:
        self._file.rewind(position)

    def close(self, report: Report) -> None:
        self._file.close()


def _counts(manifest: Manifest, key: Key, target: int) -> bool:
    return key[1] == target and manifest.plan.phases[key[0]].measure


def header(manifest: Manifest) -> str:
    """Comment lines with the start of the run, Unix epoch, and the legend."""
    start_ns = manifest.phases[0].start_ns + manifest.anchor_wall_ns - manifest.anchor_mono_ns
    start = f"{start_ns // 10**9}.{start_ns % 10**9 // 10**6:03d}"
    told = datetime.fromtimestamp(start_ns / 1e9, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    return (
        f"#[llm-latency-lens {manifest.version}, run {manifest.run_id}]\n"
        "#[Histogram log format version 1.3]\n"
        f"#[StartTime: {start} (seconds since epoch), {told}]\n"
        f"#[BaseTime: {start} (seconds since epoch)]\n"
        f"{_LEGEND}"
    )


def lines(series: Series, target: str, snapshot: Snapshot) -> list[str]:
    """The interval lines of one target, a metric each."""
    start_s = snapshot.elapsed_s - snapshot.seconds
    return [
        f"Tag={tag(name, target)},{start_s:.3f},{snapshot.seconds:.3f},"
        f"{(series.metrics[name].max or 0) / SCALES[name]:.3f},{series.metrics[name].hdr().encode().decode()}\n"
        for name in METRICS
        if name in series.metrics
    ]


def tag(metric: str, target: str) -> str:
    return _UNFIT.sub("_", f"{metric}/{target}")
