"""Is the simulator fast enough to be the truth? One process: CPU per event, lateness, requests per second.

The client is the C floor (epoll_client.c), on a core of its own where there is one. `python -m benches.bench_simulator`
prints the same numbers without pytest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from llm_latency_lens.engine.simulator.providers.openai_chat import OpenAIChat
from llm_latency_lens.engine.simulator.providers.provider import Outline
from llm_latency_lens.engine.simulator.reply.template import Rendering
from tests.support_simulator import CHAT, simulator

SECONDS = 4
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "how fast is it"}]}
STREAMS = {"ttft_ms": "uniform:20:1020", "tokens": 400}
# name, connections, script
LOADS: list[tuple[str, int, dict[str, Any]]] = [
    ("100 streams x 50/s", 100, {**STREAMS, "itl_ms": 20}),
    ("1000 streams x 20/s", 1000, {**STREAMS, "itl_ms": 50}),
    ("1000 streams x 40/s", 1000, {**STREAMS, "itl_ms": 25}),
    ("short requests, 1 token", 64, {"ttft_ms": 0, "itl_ms": 0, "tokens": 1, "closing": "with_last"}),
]


def floor_client(directory: Path) -> Path:
    """The compiled C client."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    binary = directory / "epoll_client"
    source = Path(__file__).with_name("epoll_client.c")
    subprocess.run([compiler, "-O2", "-o", str(binary), str(source)], check=True)
    return binary


def loaded(client: Path, connections: int, script: dict[str, Any]) -> dict[str, Any]:
    """One load for SECONDS: what the simulator did in that time and what it cost its core."""
    cores = sorted(os.sched_getaffinity(0))
    with simulator(flags=("--core", str(cores[0])), **script) as running:
        before, started = running.stats(), time.monotonic()
        command = [str(client), str(running.port), str(connections), str(SECONDS), CHAT, json.dumps(BODY)]
        subprocess.run(["taskset", "-c", str(cores[-1]), *command], check=True, capture_output=True)
        after, elapsed_s = running.stats(), time.monotonic() - started
    writes, requests, cpu_ns = (after[key] - before[key] for key in ("writes", "requests", "cpu_ns"))
    return {
        "writes_per_s": round(writes / elapsed_s),
        "requests_per_s": round(requests / elapsed_s),
        "cpu_us_per_write": round(cpu_ns / writes / 1000, 1),
        "core_share": round(cpu_ns / elapsed_s / 1e9, 2),
        "lateness_us": after["lateness_us"],
        "late_writes": after["late_writes"],
    }


@pytest.mark.parametrize(("name", "connections", "script"), LOADS, ids=[load[0] for load in LOADS])
def test_load(benchmark: BenchmarkFixture, tmp_path: Path, name: str, connections: int, script: dict[str, Any]) -> None:
    """Rates, CPU and lateness are in `extra_info`; the time of the round is only the length of the load."""
    client = floor_client(tmp_path)
    benchmark.extra_info |= benchmark.pedantic(loaded, (client, connections, script), rounds=1)
    print(name, benchmark.extra_info)


def _frame() -> bytes:
    outline = Outline("sim", 5, 0, 0, 4, "stop", "apart", True, 1, b"\n")
    return Rendering(OpenAIChat(), outline, {}).token(1).format


def test_a_token_frame_filled_by_format(benchmark: BenchmarkFixture) -> None:
    frame, request_id = _frame(), b"0123456789abcdef"
    benchmark(lambda: frame % (1_234_567_890_123, request_id))


def test_a_token_frame_joined_from_parts(benchmark: BenchmarkFixture) -> None:
    """What the format replaces."""
    head, _, rest = _frame().partition(b"%19d")
    middle, _, tail = rest.partition(b"%b")
    request_id = b"0123456789abcdef"
    benchmark(lambda: b"".join((head, b"%19d" % 1_234_567_890_123, middle, request_id, tail)))


def test_rendering_a_reply_that_is_not_cached(benchmark: BenchmarkFixture) -> None:
    """What a request with a new number of prompt tokens costs beyond one with a known one."""
    outline = Outline("sim", 5, 0, 0, 100, "stop", "apart", True, 1, b"\n")
    benchmark(lambda: Rendering(OpenAIChat(), outline, {}))


def main() -> None:
    """Prints each load's numbers, a line each."""
    with TemporaryDirectory() as directory:
        client = floor_client(Path(directory))
        for name, connections, script in LOADS:
            print(f"{name:24} {loaded(client, connections, script)}", flush=True)


if __name__ == "__main__":
    main()
