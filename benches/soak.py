"""Does anything grow? Watches memory, descriptors and disk of every process of a long run, and prints their slopes.

    python -m benches.soak [--streams 1000] [--minutes 30]

`slope` is of a least-squares line over the second half of the samples; `accuracy` compares the first and the last fifth
of the run's ticks: the median TTFT and ITL of a simulator whose truth does not change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil

from tests.support_simulator import simulator


def role_of(process: psutil.Process) -> str:
    words = process.cmdline()
    module = next((word for word in words if "llm_latency_lens." in word), "?")
    return module.removeprefix("llm_latency_lens.")


def sample(root: psutil.Process) -> dict[str, tuple[float, int]]:
    """RSS in MB and open descriptors of each process of the run."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            found[role_of(process)] = (process.memory_info().rss / 1e6, process.num_fds())
        except psutil.Error:
            continue
    return found


def slope(seconds: list[float], values: list[float]) -> float:
    """Per 10 minutes, over the second half."""
    half = len(seconds) // 2
    return float(np.polyfit(seconds[half:], values[half:], 1)[0]) * 600


def medians(ticks: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for metric in ("ttft_ms", "itl_ms"):
        values = [part["metrics"][metric]["p50"] for tick in ticks for part in tick["intervals"]]
        found[metric] = statistics.median(value for value in values if value is not None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, simulator(ttft_ms=100, itl_ms=50, tokens=40) as sim:
        arguments = ["--base-url", f"{sim.base_url}/v1", "--model", "m", "--concurrency", str(options.streams)]
        arguments += ["--duration", f"{options.minutes * 60:g}s", "--workers", "1", "--quiet", "--out", folder]
        process = subprocess.Popen([sys.executable, "-m", "llm_latency_lens.cli", "run", *arguments])
        root, began = psutil.Process(process.pid), monotonic()
        times: list[float] = []
        seen: dict[str, list[tuple[float, int]]] = {}
        sleep(5)
        while process.poll() is None and monotonic() - began < options.minutes * 60 - 2:
            times.append(monotonic() - began)
            for role, samples in sample(root).items():
                seen.setdefault(role, []).append(samples)
            sleep(2)
        code = process.wait()
        (run_dir,) = (each for each in Path(folder).iterdir() if not each.is_symlink())
        ticks = [json.loads(line) for line in (run_dir / "intervals.jsonl").read_text().splitlines()]
        summary = json.loads((run_dir / "summary.json").read_bytes())
        disk = sum(each.stat().st_size for each in run_dir.iterdir()) / 1e6
    print(
        f"{options.streams} streams, {options.minutes:g} min, exit code {code}, {summary['requests']['ok']:,} requests ok"
    )
    print(f"{'':24}{'RSS MB':>10}{'MB / 10 min':>14}{'descriptors':>14}")
    for role, samples in seen.items():
        if len(samples) == len(times):
            first, last = samples[len(samples) // 2][1], samples[-1][1]
            growth = slope(times, [rss for rss, _ in samples])
            print(f"{role:24}{samples[-1][0]:10.1f}{growth:14.2f}{f'{first} -> {last}':>14}")
    fifth = max(1, len(ticks) // 5)
    print(f"accuracy: first fifth {medians(ticks[2 : 2 + fifth])}, last {medians(ticks[-fifth - 2 : -2])}")
    print(f"disk: {disk:.1f} MB; drops {summary['client']['ring_drops']}, verdict {summary['verdict']['state']}")


if __name__ == "__main__":
    main()
