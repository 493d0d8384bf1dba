"""The lens beside others, in one go, against the simulator that knows the truth: CPU per event, events/s, error.

    python -m benches.compare [--streams 1000] [--tokens-per-s 20] [--seconds 8] [--rounds 3]

Contenders: a C epoll client that only counts bytes (the floor), the lens' own reactor and connections, a whole
`lens run`, a plain aiohttp + json loop, and AIPerf if it is installed. Every round runs all of them once, in turn; the
medians are printed. `error` is arrival stamp minus the send time in the chunk, so it holds the way through loopback.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Figures = dict[str, float | None]


def simulator(streams: int, rate: float) -> tuple[subprocess.Popen[bytes], str]:
    itl_ms = 1000 / rate
    process = subprocess.Popen(
        [
            sys.executable, "-m", "llm_latency_lens.engine.simulator", "--port", "0", "--die-with-parent", "--core", "0",
            "--ttft-ms", f"uniform:{itl_ms}:{2 * itl_ms}", "--itl-ms", f"{itl_ms}", "--tokens", "200",
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["base_url"]


def pinned(command: list[str]) -> list[str]:
    """On the last core, away from the simulator."""
    return ["taskset", "-c", str(len(__import__("os").sched_getaffinity(0)) - 1), *command]


def last_json(command: list[str]) -> dict[str, Any]:
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats") as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def floor(binary: Path, url: str, streams: int, seconds: float) -> Figures:
    before = stats(url)["events"]
    body = '{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"How fast is light?"}]}'
    command = [str(binary), url.rpartition(":")[2], str(streams), str(seconds), "/v1/chat/completions", body]
    out = subprocess.run(pinned(command), capture_output=True, text=True, check=True).stdout
    events = stats(url)["events"] - before
    return {"events_per_s": events / seconds, "cpu_us_per_event": float(out.split()[3]) / events}


def whole_run(url: str, streams: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, "-m", "llm_latency_lens.cli", "run", "--json", "--base-url", f"{url}/v1", "--model", "m",
                "--concurrency", str(streams), "--duration", f"{seconds}s", "--workers", "1", "--out", folder,
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    report = json.loads(done.stdout)
    return {
        "events_per_s": report["throughput"]["events_per_s"],
        "cpu_us_per_event": report["client"]["cpu_us_per_event"],
        "coalesced_share": report["client"]["itl_coalesced_share"],
        "rss_mb": report["client"]["rss_mb_max"],
    }


def aiperf(url: str, streams: int, seconds: float) -> Figures:
    import os

    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        events = stats(url)["events"]
        subprocess.run(
            [
                "aiperf", "profile", "--model", "m", "--url", url, "--endpoint-type", "chat", "--streaming",
                "--concurrency", str(streams), "--request-count", str(2 * streams), "--tokenizer", "gpt2",
                "--artifact-dir", folder,
            ],
            capture_output=True, timeout=300, check=True,
        )  # fmt: skip
        after = os.times()
        events = stats(url)["events"] - events
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return {"cpu_us_per_event": spent * 1e6 / events}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens-per-s", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    streams, seconds = options.streams, options.seconds
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "epoll_client"
        subprocess.run(["gcc", "-O2", "-o", str(binary), str(HERE / "epoll_client.c")], check=True)
        server, url = simulator(streams, options.tokens_per_s)
        try:
            script = [str(streams), str(seconds)]
            contenders: dict[str, Callable[[], Figures]] = {
                "C epoll, counts bytes": lambda: floor(binary, url, streams, seconds),
                "lens, read path alone": lambda: last_json(
                    pinned([sys.executable, "-m", "benches.arrival_error", f"{url}/v1", *script])
                ),
                "lens run, its worker": lambda: whole_run(url, streams, seconds),
                "aiohttp + json loop": lambda: last_json(
                    pinned([sys.executable, "-m", "benches.plain_client", f"{url}/v1", *script])
                ),
            }
            if shutil.which("aiperf"):
                contenders["AIPerf, all processes"] = lambda: aiperf(url, streams, seconds)
            rounds = [{name: contend() for name, contend in contenders.items()} for _ in range(options.rounds)]
        finally:
            server.terminate()
            server.wait()
    show(rounds, streams, options.tokens_per_s)


def show(rounds: list[dict[str, Figures]], streams: int, rate: float) -> None:
    columns = ("cpu_us_per_event", "events_per_s", "error_us_p50", "error_us_p99", "coalesced_share", "rss_mb")
    print(f"{streams} streams x {rate:g} tokens/s, medians of {len(rounds)} rounds")
    print(
        f"{'':24}{'CPU us/event':>14}{'x floor':>9}{'events/s':>10}{'error p50':>11}{'p99 us':>10}{'shared':>8}{'RSS MB':>8}"
    )
    floors = [each["C epoll, counts bytes"]["cpu_us_per_event"] or 1 for each in rounds]
    for name in rounds[0]:
        median = {}
        for column in columns:
            found = [value for each in rounds if (value := each[name].get(column)) is not None]
            median[column] = statistics.median(found) if found else None
        ratio = statistics.median(
            (each[name]["cpu_us_per_event"] or 0) / base for each, base in zip(rounds, floors, strict=True)
        )
        cells = [median["cpu_us_per_event"], ratio, *(median[column] for column in columns[1:])]
        widths, digits = (14, 9, 10, 11, 10, 8, 8), (1, 2, 0, 1, 1, 3, 0)
        line = "".join(
            "-".rjust(w) if c is None else f"{c:{w}.{d}f}" for c, w, d in zip(cells, widths, digits, strict=True)
        )
        print(f"{name:24}{line}")


if __name__ == "__main__":
    main()
