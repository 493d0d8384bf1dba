"""What it costs a worker to belong to a run of many hosts: `python -m benches.hosts_cost [--pairs 5] [--cluster local|ray:local]`.

Pairs of runs, a plain one and one of a single host, of the same plan against the same simulator, in alternating order.
Printed are the medians over the pairs of the ratios of CPU time per event and of the client's own lateness.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support_lens import measured
from tests.support_simulator import simulator

LOAD = ("--rate", "100", "--duration", "5s", "--output-tokens", "100", "--workers", "1", "--model", "m")


def cost_of(summary: dict[str, Any]) -> tuple[float, float]:
    """(us of CPU per event, p50 of client_lateness_ms)."""
    return summary["client"]["cpu_us_per_event"], summary["metrics"]["client_lateness_ms"]["p50"]


def run(base_url: str, folder: Path, *arguments: str) -> tuple[float, float]:
    return cost_of(measured("--base-url", f"{base_url}/v1", *LOAD, *arguments, cwd=folder))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cluster", default="local")
    options = parser.parse_args(arguments)
    pairs = []
    with tempfile.TemporaryDirectory() as folder, simulator(ttft_ms=20, itl_ms=10, tokens=100) as sim:
        for i in range(options.pairs):
            hosts = ("--hosts", "1", "--cluster", options.cluster)
            found = {}
            for kind in ((), hosts) if i % 2 else (hosts, ()):
                found[bool(kind)] = run(sim.base_url, Path(folder), *kind)
            pairs.append((found[False], found[True]))
            print(f"plain {found[False][0]:.2f} us/event, as a host {found[True][0]:.2f} us/event", flush=True)
    for n, name in enumerate(("CPU per event", "client lateness p50")):
        ratio = statistics.median(host[n] / plain[n] for plain, host in pairs)
        print(f"{name}: as a host {ratio:.3f} of a plain run (median of {len(pairs)} pairs)")


if __name__ == "__main__":
    main()
