"""intervals.hlog and totals.hlog: HdrHistogram logs, version 1.3, as the standard Java and Python readers take them.

One line per tick, metric and target of the measured phases, `Tag=<metric>/<target>`; the duration of failed requests
is `Tag=e2e_ms.<outcome>/<target>`. A tick's `itl_ms` and `ttft_ms` are of what happened in it, in cells of at most 1.6 %,
and beside them are `itl_ms.ended` and `ttft_ms.ended`, of the ok requests that ended in it. Values are histogram units
(ns; micro-tokens/s; 10 pico-USD), the max column is in the metric's own unit. Times are relative to BaseTime. The sum
of a tag's intervals (of its `.ended` one where there is one) is the run's total, count for count: that is its one line in
totals.hlog, for who would wait long for the intervals of days.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ...collectors.goodput import Key
from ...collectors.series import NOBODY, Slab
from ...collectors.snapshot import Snapshot
from ...engine.files import replace
from ...engine.metrics import SCALES
from ...engine.runs.manifest import Manifest
from ..spool.ticks import TickFile

INTERVALS: Final = "intervals.hlog"
TOTALS: Final = "totals.hlog"
_LEGEND: Final = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
_UNFIT: Final = re.compile(r"[,\s]")  # what would end a tag


class IntervalHistograms(TickFile):
    """intervals.hlog as a sink of the collector."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / INTERVALS)

    def blocks(self, snapshot: Snapshot, slab: Slab, manifest: Manifest) -> Iterator[bytes]:
        if self.file.fresh:  # every part is a log of its own
            yield header(manifest).encode()
        for line in lines(slab, manifest, snapshot.elapsed_s - snapshot.seconds, snapshot.seconds):
            yield line.encode()


def _counts(manifest: Manifest, key: Key, target: int) -> bool:
    return key[1] == target and manifest.plan.phases[key[0]].measure


def header(manifest: Manifest) -> str:
    """Comment lines with the start of the run, Unix epoch, and the legend."""
    start_ns = manifest.phases[0].start_ns + manifest.anchor_wall_ns - manifest.anchor_mono_ns
    start = f"{start_ns // 10**9}.{start_ns % 10**9 // 10**6:03d}"
    readable = datetime.fromtimestamp(start_ns / 1e9, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    return (
        f"#[llm-latency-lens {manifest.version}, run {manifest.run_id}]\n"
        "#[Histogram log format version 1.3]\n"
        f"#[StartTime: {start} (seconds since epoch), {readable}]\n"
        f"#[BaseTime: {start} (seconds since epoch)]\n"
        f"{_LEGEND}"
    )


def write_totals(run_dir: Path, totals: Slab, manifest: Manifest, seconds: float) -> None:
    """totals.hlog of a run of so many seconds. A disk that refuses it costs readers time, and nothing else."""
    if not manifest.phases:
        return  # it never began
    text = header(manifest) + "".join(lines(totals, manifest, 0.0, seconds))
    with suppress(OSError):
        replace(run_dir / TOTALS, text.encode())


def lines(slab: Slab, manifest: Manifest, start_s: float, seconds: float) -> Iterator[str]:
    """The interval lines of a span of time, one for each metric and target."""
    for target, name in [*enumerate(each.name for each in manifest.plan.targets), (NOBODY, "")]:
        series = slab.only(lambda key, target=target: _counts(manifest, key, target))  # type: ignore[misc]  # default
        for metric, histogram in series.named().items():
            top = (histogram.max or 0) / SCALES[metric.partition(".")[0]]
            yield f"Tag={tag(metric, name)},{start_s:.3f},{seconds:.3f},{top:.3f},{histogram.hdr().encode().decode()}\n"


def tag(metric: str, target: str) -> str:
    return _UNFIT.sub("_", f"{metric}/{target}")
