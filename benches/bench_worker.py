"""A whole worker, end to end: `lens run` against the simulator, short requests and long streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support_lens import measured
from tests.support_simulator import simulator


@pytest.mark.parametrize(
    ("tokens", "concurrency", "requests"), [(1, 64, 20_000), (200, 200, 400)], ids=["short requests", "long streams"]
)
def test_worker(benchmark: Any, tokens: int, concurrency: int, requests: int, tmp_path: Path) -> None:
    """`extra_info` has requests per second of the worker's CPU, CPU per event, and its memory."""
    summaries: list[dict[str, Any]] = []
    with simulator(ttft_ms=0, itl_ms=0 if tokens == 1 else 5, tokens=tokens) as sim:

        def run() -> None:
            load = ("--concurrency", str(concurrency), "--requests", str(requests))
            summaries.append(measured("--base-url", f"{sim.base_url}/v1", "--model", "m", *load, cwd=tmp_path))

        benchmark.pedantic(run, rounds=3)
    client = summaries[-1]["client"]
    events = summaries[-1]["throughput"]["events_per_s"] * summaries[-1]["run"]["duration_s"]
    busy_s = client["cpu_us_per_event"] * events / 1e6
    benchmark.extra_info |= {
        "requests_per_s_of_a_whole_core": round(requests / busy_s),
        "cpu_us_per_event": round(client["cpu_us_per_event"], 1),
        "rss_mb": round(client["rss_mb_max"], 1),
    }
    print(benchmark.extra_info)
