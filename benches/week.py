"""A week of ticks through the collector, its files and its checkpoint, with the clock turned on by hand.

    python -m benches.week [--days 7] [--tick 10] [--targets 3]

The rings are real, the requests are made up, and nobody waits for the time to pass. Prints memory, descriptors and disk
on the way. Memory must stand still after the first day; disk is counted separately from request rows, which have their cap.
"""

from __future__ import annotations

import argparse
import tempfile
from array import array
from pathlib import Path
from time import monotonic

import msgspec
import psutil

from llm_latency_lens.cli.processes.collect import collector_of, return_memory
from llm_latency_lens.collectors.rings import GRACE_NS
from llm_latency_lens.engine.plan.plan import Output
from llm_latency_lens.engine.records.layout import Geometry
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_collector import MS, SECOND, START, fields, happens, manifest, plan, values

DAY_S = 86_400
PER_TICK = 4  # requests of a target
RECORDS_MAX = 64 << 20
GAP_NS = 10 * MS


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--days", type=float, default=7)
    options.add_argument("--tick", type=float, default=10, help="seconds of a tick")
    options.add_argument("--targets", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        week(Path(folder), given.days, int(given.tick * SECOND), given.targets)


def week(folder: Path, days: float, tick_ns: int, targets: int) -> None:
    return_memory()
    segments, run_dir = folder / "segments", folder / "run"
    segments.mkdir()
    run_dir.mkdir()
    run_plan = plan(targets=targets, rate=PER_TICK * targets, duration_ns=int(days * DAY_S * SECOND), tick_ns=tick_ns)
    run_plan = msgspec.structs.replace(run_plan, output=Output(tick_ns=tick_ns, records_max_bytes=RECORDS_MAX))
    manifest(str(run_dir), run_plan).write(segments)
    geometry = Geometry(4096, 1 << 15, 256, 16, 1, targets)
    ring = SegmentWriter.create(segments / "worker-0.1.ring", geometry, worker=0, incarnation=1)
    ring.ticks.start(START, tick_ns)
    now = [START]
    collector = collector_of(segments)
    collector.clock = lambda: now[0]
    process, began, first_mb = psutil.Process(), monotonic(), 0.0
    ticks = int(days * DAY_S * SECOND / tick_ns)
    request = 0
    print(f"{ticks:,} ticks of {tick_ns / SECOND:g} s, {targets} targets, {ticks * PER_TICK * targets:,} requests")
    for tick in range(ticks):
        end_ns = START + (tick + 1) * tick_ns
        for k in range(PER_TICK * targets):
            slow = 1 + (request * 7919 % 997) / 100
            gaps = array("Q", [int(GAP_NS * slow)] * 10)
            happens(ring, k % targets, end_ns - SECOND, *[int(GAP_NS * slow)] * 10)
            ring.push(values(fields(intended_ns=end_ns - 2 * SECOND, request=request, target=k % targets)), gaps)
            request += 1
        now[0] = end_ns + GRACE_NS
        collector.turn()
        ring.ticks.acknowledge()
        if tick % max(1, ticks // 14) == 0 or tick == ticks - 1:
            mb = process.memory_info().rss / 1e6
            if tick * tick_ns <= DAY_S * SECOND:
                first_mb = mb
            sizes = {path: path.stat().st_size for path in run_dir.iterdir()}
            rows = sum(size for path, size in sizes.items() if path.name.startswith("requests")) / 1e6
            print(
                f"day {tick * tick_ns / SECOND / DAY_S:4.1f}: {mb:6.1f} MB, {process.num_fds()} descriptors, "
                f"{len(sizes)} files, {sum(sizes.values()) / 1e6 - rows:,.1f} MB and {rows:,.1f} MB of rows"
            )
    grown = mb - first_mb
    took = monotonic() - began
    print(f"{took:.0f} s, {1e3 * took / ticks:.2f} ms a tick; memory after the first day: {grown:+.1f} MB")


if __name__ == "__main__":
    main()
