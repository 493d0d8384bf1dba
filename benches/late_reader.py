"""What a late worker's stamps are worth, with segment stamps and without: the table of the README.

usage: python benches/late_reader.py [--streams 50] [--seconds 8]

The worker is stopped (SIGSTOP) for 300 ms twice a second while it reads `streams` streams of 50 tokens/s. Its TTFT and
ITL are compared with the simulator's own log of the same run. Needs CAP_NET_RAW for the first row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support_lens import LENS
from tests.support_simulator import simulator
from tests.support_stamps import found, stop_again_and_again


def stopped_run(url: str, stamps: str, streams: int, seconds: float) -> dict[str, Any]:
    """The summary of a run whose worker is stopped again and again."""
    command = [*LENS, "run", "--json", "--quiet", "--base-url", url, "--model", "m", "--workers", "1"]
    command += ["--concurrency", str(streams), "--duration", f"{seconds}s", "--stamps", stamps]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen([*command, "--out", folder], stdout=output, text=True)
        stop_again_and_again(run, found(run, "engine.worker"))
        output.seek(0)
        summary: dict[str, Any] = json.load(output)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    print(f"{'':22}TTFT p50     p99   ITL p99     max   coalesced gaps  first tokens   verdict")
    for stamps in ("segment", "read"):
        with simulator(flags=("--log-tokens",), ttft_ms="lognormal:50:0.1", itl_ms=20, tokens=50) as sim:
            summary = stopped_run(f"{sim.base_url}/v1", stamps, options.streams, options.seconds)
            log = [row for row in sim.log() if row["status"] == 200]
        ttft = np.array([row["first_token_sent_ns"] - row["arrival_ns"] for row in log]) / 1e6
        gaps = np.concatenate([np.diff(row["token_sent_ns"]) for row in log]) / 1e6
        metrics, client = summary["metrics"], summary["client"]
        truth = [np.percentile(ttft, 50), np.percentile(ttft, 99), np.percentile(gaps, 99), gaps.max()]
        mine = [
            metrics["ttft_ms"]["p50"],
            metrics["ttft_ms"]["p99"],
            metrics["itl_ms"]["p99"],
            metrics["itl_ms"]["max"],
        ]
        print(f"{'the server said':20}" + "".join(f"{value:10.2f}" for value in truth))
        codes = ", ".join(reason["code"] for reason in summary["verdict"]["reasons"])
        print(
            f"{'--stamps ' + stamps:20}"
            + "".join(f"{value:10.2f}" for value in mine)
            + f"{client['itl_coalesced_share']:15.2%}{client['ttft_coalesced_share']:14.1%}"
            + f"   {summary['verdict']['state']} ({codes})"
        )


if __name__ == "__main__":
    main()
