"""Load hosts at the end of a slow way: network namespaces, joined to the driver's by a link with delay, jitter and loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support_lens import accounts, environment
from tests.support_netns import delay_link, needs_namespaces, needs_tun
from tests.support_simulator import simulator

DRIVER = Path(__file__).parent / "support_driver.py"
TTFT_MS = 30
LINKS = [(20.0, 20.0, 0.005)]  # delay and jitter in ms, share of lost packets


@pytest.mark.slow
@needs_namespaces
@needs_tun
@pytest.mark.parametrize(("delay_ms", "jitter_ms", "loss"), LINKS, ids=[f"{d:g} ms" for d, _, _ in LINKS])
def test_a_slow_way_to_the_driver_changes_no_count_and_no_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_ms: float, jitter_ms: float, loss: float
) -> None:
    """Only starts and ticks cross the way. One machine has one clock, so the true offset is 0: the bound must hold it,
    although each packet takes another time on either way."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with delay_link(delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss) as (here, there):
        with simulator(wrapper=there.wrapper, ttft_ms=TTFT_MS, itl_ms=1, tokens=6) as sim:
            plan = tmp_path / "plan.yaml"
            plan.write_text(
                f"target: {{base_url: '{sim.base_url}/v1', model: m, parameters: {{max_tokens: 6}}}}\n"
                "load: {rate: 40}\nduration: 3s\nhosts: {count: 2, cluster: local}\n"
            )
            command = [sys.executable, str(DRIVER), str(plan), here.address, *there.wrapper]
            done = subprocess.run(
                [*here.wrapper, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=110
            )
    assert done.returncode == 0, done.stderr
    hosts = json.loads(done.stdout)["hosts"]
    for host in hosts:
        assert abs(host["offset_ns"]) <= host["clock_bound_ns"]
        assert host["clock_bound_ns"] >= delay_ms * 1e6
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 120
    assert summary["metrics"]["ttft_ms"]["min"] < TTFT_MS + delay_ms / 2 + 5, "the hosts' way to the server is short"
    codes = {reason["code"] for reason in summary["verdict"]["reasons"]}
    assert ("clock_bound" in codes) == any(host["clock_bound_ns"] > 10_000_000 for host in hosts)
