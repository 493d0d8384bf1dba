"""The report of a day: 86,400 ticks of five targets, with their histograms, as one page. Seconds, sizes, peak memory.

    python -m benches.day [--ticks 86400] [--targets 5] [--dir DIR]

The run directory is made of the lines of a minute, repeated with times of their own; it takes gigabytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
import shutil
import tempfile
from pathlib import Path
from time import monotonic

import numpy as np

from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.engine.metrics import METRICS
from llm_latency_lens.exporters.hdr.write import TOTALS
from llm_latency_lens.exporters.html import page as html
from tests.support_runs import FakeRun

MINUTE = 60
PER_TICK = 20  # requests of a target; each has 31 tokens


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--ticks", type=int, default=86_400)
    options.add_argument("--targets", type=int, default=5)
    options.add_argument("--dir", type=Path, help="keep the run and its page here [default: a temporary directory]")
    given = options.parse_args()
    folder = given.dir or Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        if not (folder / "summary.json").exists():
            make(folder, given.ticks, given.targets)
        sizes = ", ".join(f"{each.name} {each.stat().st_size / 1e6:,.1f} MB" for each in folder.glob("*s.*l*"))
        print(f"{given.ticks:,} ticks of {given.targets} targets: {sizes}")
        with multiprocessing.get_context("spawn").Pool(1) as process:
            seconds, peak_bytes = process.apply(page, (folder,))
        size = (folder / "report.html").stat().st_size
        print(f"report.html: {seconds:.1f} s, {size / 1e6:.2f} MB, peak memory {peak_bytes / 1e6:.0f} MB")
    finally:
        if not given.dir:
            shutil.rmtree(folder)


def page(folder: Path) -> tuple[float, int]:
    """Seconds to write the page, and the most memory that took, in bytes."""
    began = monotonic()
    html.write_html([folder], folder / "report.html")
    return monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make(folder: Path, ticks: int, targets: int) -> None:
    """A run directory without requests."""
    FakeRun(ticks=MINUTE, targets=targets).write(folder, records=0)
    lines = (folder / "intervals.jsonl").read_bytes().splitlines(keepends=True)
    logged = [histograms(tick, targets) for tick in range(MINUTE)]
    with (folder / "intervals.jsonl").open("wb") as intervals, (folder / "intervals.hlog").open("w") as log:
        log.write("#[Histogram log format version 1.3]\n")
        for tick in range(ticks):
            line = re.sub(rb'"tick":\d+', b'"tick":%d' % tick, lines[tick % MINUTE], count=1)
            intervals.write(re.sub(rb'"elapsed_s":[\d.]+', b'"elapsed_s":%d.0' % (tick + 1), line, count=1))
            log.writelines(f"Tag={tag},{tick}.000,1.000,0.000,{encoded}\n" for tag, encoded in logged[tick % MINUTE])
    with (folder / TOTALS).open("w") as log:  # of the first minute: their number does not change what it costs to read
        log.writelines(f"Tag={tag},0.000,{ticks}.000,0.000,{encoded}\n" for tag, encoded in logged[0])


def histograms(tick: int, targets: int) -> list[tuple[str, str]]:
    """(tag, histogram) of every metric and target of one tick."""
    chance, found = np.random.default_rng(tick), []
    for target in range(targets):
        for metric in METRICS:
            histogram = Histogram()
            count = PER_TICK * (30 if metric == "itl_ms" else 1)
            histogram.record(chance.lognormal(np.log(4e7), 0.3, count).astype(np.int64))
            found.append((f"{metric}/target-{target}", histogram.hdr().encode().decode()))
    return found


if __name__ == "__main__":
    main()
