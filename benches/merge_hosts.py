"""What the driver's collector costs: `python -m benches.merge_hosts [--hosts 20] [--targets 5] [--ticks 300]`.

The ticks of simulated hosts, made by the real code of a host, go through the real collector of a driver with all its
files. Printed is the CPU time of a tick, for one host and for many: of the merging, and with the files and reports of any run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import process_time

import msgspec
import numpy as np

from llm_latency_lens.cli.processes.collect import collector_of
from llm_latency_lens.collectors.checkpoint import Progress
from llm_latency_lens.collectors.hosts.merged import Hosts
from llm_latency_lens.collectors.hosts.tick import HostTick, live_of
from llm_latency_lens.collectors.series import Reader
from llm_latency_lens.collectors.totals import Totals
from llm_latency_lens.engine.hosts.relay import TickFolder, incoming
from llm_latency_lens.engine.records.lag import LAG_BUCKETS
from llm_latency_lens.engine.records.layout import Counter
from llm_latency_lens.engine.runs.manifest import HostState, read_manifest
from tests.support_collector import MS, SECOND, START, fields, manifest, plan, slab

TICKS_PER_S = 10
REQUESTS = 40  # of one target in one tick of one host
RECORDED = 10  # different ticks, used again and again


def host_tick(seed: int, targets: int) -> bytes:
    """A tick of `REQUESTS` requests a target with latencies of its own, in all metrics."""
    random = np.random.default_rng(seed)
    rows = []
    for k, (ttft, e2e) in enumerate(
        zip(random.lognormal(3, 0.5, REQUESTS * targets), random.lognormal(6, 0.5, REQUESTS * targets), strict=True)
    ):
        first, end = START + round(ttft * MS), START + round((ttft + e2e) * MS)
        marks = {"first_event_ns": first, "first_token_ns": first, "first_output_ns": first, "headers_ns": first - MS}
        rows.append(fields(request=k, target=k % targets, last_token_ns=end - MS, end_ns=end, send_ns=START, **marks))
    made = slab(*rows, targets=targets)
    for series in made.series.values():
        series.live = {"ttft_ms": series.metrics["ttft_ms"], "itl_ms": series.metrics["tpot_ms"]}
    counters = {seed: [0] * len(Counter)}
    lag = np.ones(LAG_BUCKETS, np.int64).tobytes()
    return msgspec.msgpack.encode(HostTick(slab=made.packed(), live=live_of(made), counters=counters, lag=lag))


def cpu_s(hosts: int, targets: int, ticks: int, *, merging_only: bool = False) -> float:
    """CPU seconds of the driver's collector over so many ticks; without its files and reports if `merging_only`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run_dir, segments = Path(folder, "run"), Path(folder, "segments")
        run_dir.mkdir()
        segments.mkdir()
        run_plan = plan(targets=targets, rate=100.0, duration_ns=3600 * SECOND, tick_ns=SECOND // TICKS_PER_S)
        states = [
            HostState(name=f"host-{i}", workers=1, first_worker=i, state="running", start_ns=START)
            for i in range(hosts)
        ]
        manifest(str(run_dir), run_plan, hosts=states, workers=hosts).write(segments)
        recorded = [[host_tick(host * RECORDED + n, targets) for n in range(RECORDED)] for host in range(hosts)]
        folders = [TickFolder(incoming(segments, index)) for index in range(hosts)]
        collector = collector_of(segments)
        state = read_manifest(segments)
        source = Hosts(
            segments, state, Progress(), Totals(Reader(targets), start_ns=START, tick_ns=run_plan.output.tick_ns)
        )
        used = 0.0
        for tick in range(ticks):
            for each, ready in zip(folders, recorded, strict=True):
                each.put(tick, ready[tick % RECORDED])
            collector.clock = lambda tick=tick: START + (tick + 1) * SECOND // TICKS_PER_S + 60 * MS
            before = process_time()
            if merging_only:
                source.read(state, collector.clock())
                source.close(tick, [0])
                source.release()
            else:
                collector.turn()
            used += process_time() - before
        assert (source.totals if merging_only else collector.totals).next_tick == ticks
        return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--targets", type=int, default=5)
    parser.add_argument("--ticks", type=int, default=300)
    options = parser.parse_args()
    for hosts in (1, options.hosts):
        used = cpu_s(hosts, options.targets, options.ticks) / options.ticks
        merging = cpu_s(hosts, options.targets, options.ticks, merging_only=True) / options.ticks
        print(
            f"{hosts:3} hosts x {options.targets} targets: merging {1e3 * merging:.2f} ms a tick, {merging * TICKS_PER_S:.1%} "
            f"of a core at {TICKS_PER_S} ticks/s; with files and reports {1e3 * used:.2f} ms"
        )


if __name__ == "__main__":
    main()
