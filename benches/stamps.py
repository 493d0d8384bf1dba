"""What segment stamps cost and bring while nothing is late: `--stamps read` and `--stamps segment` in turn, one table.

    python -m benches.stamps [--streams 500 1000] [--tokens-per-s 20] [--seconds 10] [--pairs 3]

Each pair runs both against the same simulator, which has the first core to itself; which one goes first alternates.
Printed are medians over the pairs, the difference within a pair, and the tap's own CPU. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from time import monotonic
from typing import NamedTuple

import psutil

from benches.compare import simulator

MODES = ("read", "segment")
SAMPLE_S = 0.5


class Figures(NamedTuple):
    """One run. `tap_share`: of one core, over the tap's life."""

    cpu_us: float
    events_per_s: float
    itl_coalesced: float
    lag_p99_us: float
    stamps: str
    tap_share: float


def tap_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            if "llm_latency_lens.engine.wire.tap" in child.cmdline():
                return child
    except psutil.Error:
        pass
    return None


def run(url: str, stamps: str, streams: int, seconds: float) -> Figures:
    """`lens run` to its end, while its tap is watched."""
    command = [sys.executable, "-m", "llm_latency_lens.cli", "run", "--json", "--quiet", "--base-url", f"{url}/v1"]
    command += ["--model", "m", "--workers", "1", "--concurrency", str(streams), "--duration", f"{seconds}s"]
    spent = lived = 0.0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*command, "--stamps", stamps, "--out", folder], stdout=output, text=True)
        first: tuple[float, float] | None = None
        while True:
            try:
                process.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                tap = tap_of(process)
            if tap is not None:
                try:
                    times, now = tap.cpu_times(), monotonic()
                except psutil.Error:
                    continue
                first = first or (times.user + times.system, now)  # without the start of the interpreter
                spent, lived = times.user + times.system - first[0], now - first[1]
        output.seek(0)
        summary = json.loads(output.read())
    client = summary["client"]
    return Figures(
        client["cpu_us_per_event"],
        summary["throughput"]["events_per_s"],
        client["itl_coalesced_share"],
        client["loop_lag_us"]["p99"],
        client["stamps"],
        spent / lived if lived else 0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--tokens-per-s", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; medians of {options.pairs} pairs")
    print(f"{'':22}{'CPU us/event':>14}{'events/s':>10}{'ITL coalesced':>15}{'lag p99 us':>12}{'tap, of a core':>16}")
    for streams in options.streams:
        found: dict[str, list[Figures]] = {mode: [] for mode in MODES}
        server, url = simulator(streams, options.tokens_per_s)
        try:
            for pair in range(options.pairs):
                for mode in MODES if pair % 2 else reversed(MODES):
                    found[mode].append(run(url, mode, streams, options.seconds))
        finally:
            server.terminate()
            server.wait()
        for runs in found.values():
            columns = [
                statistics.median(column) for column in zip(*(each[:4] + each[5:] for each in runs), strict=True)
            ]
            print(
                f"{f'{streams} streams, {runs[-1].stamps}':22}{columns[0]:14.2f}{columns[1]:10.0f}{columns[2]:15.3%}"
                f"{columns[3]:12.0f}{columns[4]:16.2%}"
            )
        pairs = zip(found["read"], found["segment"], strict=True)
        differences = sorted(segment.cpu_us - read.cpu_us for read, segment in pairs)
        print(f"{'':10}segment above read, us per event: {', '.join(f'{each:+.2f}' for each in differences)}")


if __name__ == "__main__":
    main()
