"""Whether intervals cover the truth through the real thing: workers, rings, collector and `lens run` against the simulator.

    python -m benches.real_coverage [--samples 200] [--seconds 2.5] [--rate 200]

Every sample is a phase of its own, with ladders and intervals of its own; twenty phases make a run. The simulator draws
its TTFT from a lognormal distribution, but what a client sees has the delays of this machine on top, so that the truth is
the quantile of the requests of all samples together. Printed as benches/coverage.py does: `given`, `covers` (of those
given), `below`, `above` (of all), and the mean width over the range of 95 % of the estimates.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from llm_latency_lens.exporters.rundir import requests
from tests.support_lens import lens
from tests.support_simulator import simulator

PHASES: Final = 20  # of one run
TTFT: Final = "lognormal:150:0.5"  # far longer than the delays of an idle machine, far shorter than a sample
METRIC: Final = "ttft_ms"
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95}


def run_of(folder: Path, url: str, rate: float, seconds: float, seed: int) -> tuple[list[dict[str, Any]], list[float]]:
    """The distributions of one run's phases, and the values of all its requests."""
    phases = [
        {"name": f"sample-{i}", "duration": f"{seconds:g}s", "load": {"rate": rate, "arrivals": "poisson"}}
        for i in range(PHASES)
    ]
    plan = {
        "name": "coverage",
        "seed": seed,
        "targets": [{"name": "sim", "provider": "openai", "base_url": f"{url}/v1", "model": "sim"}],
        "workload": {"prompts": {"synthetic": {"input_tokens": 8, "output_tokens": 2}}},
        "phases": phases,
        "output": {"dir": str(folder), "tick": "50ms"},
    }
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    ended = lens("run", str(path), "--json", "--quiet", cwd=folder)
    assert ended.code == 0, ended.stderr
    values = [row[METRIC] for row in requests(folder / "latest") if row[METRIC] is not None]
    return [phase["metrics"][METRIC] for phase in ended.summary["run"]["phases"]], values


def line_of(name: str, found: list[dict[str, Any]], truth: float) -> str:
    """What the intervals of one statistic did."""
    bounds = [(each["ci95"] or {}).get(name, (None, None)) for each in found]
    low, high = (np.array([math.nan if each[end] is None else each[end] for each in bounds]) for end in (0, 1))
    given = np.isfinite(low) & np.isfinite(high)
    covers = np.mean((low <= truth) & (truth <= high), where=given) if given.any() else math.nan
    oracle = np.diff(np.quantile([each[name] for each in found], (0.025, 0.975)))[0]
    width = np.mean(high - low, where=given) / oracle if given.any() else math.nan
    return (
        f"{name:5} truth {truth:6.1f} ms  given {given.mean():5.1%}  covers {covers:5.1%}  width {width:4.2f}  "
        f"below {np.mean(low > truth):5.1%}  above {np.mean(high < truth):5.1%}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--samples", type=int, default=200)
    options.add_argument("--seconds", type=float, default=2.5)
    options.add_argument("--rate", type=float, default=200.0)
    given = options.parse_args()
    found: list[dict[str, Any]] = []
    values: list[float] = []
    with simulator(ttft_ms=TTFT, itl_ms=1, tokens=2) as sim, tempfile.TemporaryDirectory() as folder:
        for seed in range(-(-given.samples // PHASES)):
            more, seen = run_of(Path(folder), sim.base_url, given.rate, given.seconds, seed)
            found, values = found + more, values + seen
            print(f"{len(found)} samples, {len(values)} requests", flush=True)
    n_eff = float(np.median([each["n_eff"] / each["count"] for each in found]))
    print(f"{METRIC} of {len(found)} samples of about {len(values) // len(found)} requests, n_eff/n {n_eff:.2f}")
    print(line_of("mean", found, float(np.mean(values))))
    for name, q in QUANTILES.items():
        print(line_of(name, found, float(np.quantile(values, q))))


if __name__ == "__main__":
    main()
