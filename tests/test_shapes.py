"""Every load shape against the simulator's own log: arrivals, caps, limits, sessions, retries, stops (METRICS promise 4)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.support_lens import accounts, lens, measured
from tests.support_simulator import simulator


def rows(cwd: Path) -> list[dict[str, Any]]:
    with (cwd / "runs" / "latest" / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def write(folder: Path, url: str, **keys: Any) -> str:
    """A plan file with one target at `url` and the given keys."""
    path = folder / "plan.json"
    path.write_text(json.dumps({"target": {"base_url": f"{url}/v1", "model": "m"}, **keys}))
    return str(path)


@pytest.mark.slow
def test_a_server_frozen_for_two_seconds_shows_in_full(tmp_path: Path) -> None:
    """100/s for 10 s, frozen from 4 to 6 s: a fifth of the requests wait, evenly from 0 to 2 s (closed form)."""
    with simulator(ttft_ms=1, itl_ms=0, tokens=1, freeze=[[4, 6]]) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "100", "--duration", "10s",
            "--max-in-flight", "20", cwd=tmp_path,
        )  # fmt: skip
    accounts(summary["requests"])
    assert summary["requests"]["planned"] == summary["requests"]["ok"] == 1000
    scheduled = summary["metrics"]["e2e_scheduled_ms"]
    assert scheduled["p95"] == pytest.approx(1500, rel=0.1)
    assert scheduled["p99"] == pytest.approx(1900, rel=0.1)
    assert scheduled["max"] == pytest.approx(2000, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:0.5"])
def test_one_seed_is_one_schedule_however_many_workers(arrivals: str, tmp_path: Path) -> None:
    schedules = []
    with simulator(ttft_ms=1, itl_ms=0, tokens=1) as sim:
        for workers in ("1", "2", "3"):
            summary = measured(
                "--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "200", "--arrivals", arrivals,
                "--duration", "2s", "--seed", "11", "--workers", workers, cwd=tmp_path,
            )  # fmt: skip
            assert summary["client"]["workers"] == int(workers)
            intended = np.sort([row["wall_time_ns"] for row in rows(tmp_path)])
            schedules.append((intended - intended[0]).tolist())
    assert schedules[0] == schedules[1] == schedules[2]


@pytest.mark.slow
def test_a_ramp_follows_its_integral(tmp_path: Path) -> None:
    with simulator(ttft_ms=1, itl_ms=0, tokens=1) as sim:
        plan = write(tmp_path, sim.base_url, load={"rate": {"from": 0, "to": 400}}, duration="4s")
        summary = measured(plan, cwd=tmp_path)
        arrived = np.sort([row["arrival_ns"] for row in sim.log()])
    assert summary["requests"]["planned"] == len(arrived) == pytest.approx(800, rel=0.01)
    seconds = (arrived - arrived[0]) / 1e9
    for at in (1.0, 2.0, 3.0):
        assert (seconds < at).sum() == pytest.approx(50 * at * at, rel=0.05)


@pytest.mark.slow
def test_a_full_cap_with_drop_is_no_capacity_and_nothing_else(tmp_path: Path) -> None:
    with simulator(ttft_ms=500, itl_ms=0, tokens=1) as sim:
        load = {"rate": 50, "max_in_flight": 5, "overflow": "drop"}
        summary = measured(write(tmp_path, sim.base_url, load=load, duration="2s"), cwd=tmp_path)
        received = sim.stats()["requests"]
    requests = summary["requests"]
    accounts(requests)
    assert requests["planned"] == 100
    assert requests["sent"] == received
    assert requests["unsent"] == {"no_capacity": 100 - received}


@pytest.mark.slow
def test_requests_per_minute_are_never_exceeded_in_any_window(tmp_path: Path) -> None:
    limit, burst_s = 1200, 0.5
    with simulator(ttft_ms=1, itl_ms=0, tokens=1) as sim:
        plan = write(
            tmp_path, sim.base_url, load={"rate": 100}, duration="3s", workers=2,
            limits={"rpm": limit, "burst": f"{burst_s}s", "drain": "1s"},
        )  # fmt: skip
        summary = measured(plan, cwd=tmp_path)
        arrived = np.sort([row["arrival_ns"] for row in sim.log()]) / 1e9
    accounts(summary["requests"])
    burst = burst_s * limit / 60
    for i in range(len(arrived)):
        window = arrived[i:] - arrived[i]
        allowed = limit / 60 * window + burst + 1
        assert (np.arange(1, len(window) + 1) <= allowed + 0.5).all()
    used = len(arrived) / (limit / 60 * (arrived[-1] - arrived[0]) + burst)
    assert used >= 0.95


@pytest.mark.slow
def test_sessions_say_what_was_really_answered_and_never_overlap(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions.jsonl"
    turns = [{"user": f"question {i}", "think_s": 0.05} for i in range(5)]
    sessions.write_text("".join(json.dumps({"id": str(s), "turns": turns}) + "\n" for s in range(4)))
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        plan = write(tmp_path, sim.base_url, workload={"sessions": str(sessions)}, load={"concurrency": 2}, requests=4)
        summary = measured(plan, cwd=tmp_path)
        log = sim.log()
    accounts(summary["requests"])
    made = rows(tmp_path)
    assert len(made) == len(log) == summary["requests"]["ok"] == 20
    for session in {row["session"] for row in made}:
        mine = sorted((row for row in made if row["session"] == session), key=lambda row: row["wall_time_ns"])
        assert [row["turn"] for row in mine] == sorted({row["turn"] for row in mine})
        grown = [row["input_tokens"] for row in mine]
        assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(grown))  # the reply and the question
        for before, after in itertools.pairwise(mine):
            pause_ms = (after["wall_time_ns"] - before["wall_time_ns"]) / 1e6 - before["end_ms"]
            assert pause_ms == pytest.approx(50, abs=1)


@pytest.mark.slow
def test_a_retry_waits_for_retry_after_and_is_one_request(tmp_path: Path) -> None:
    with simulator(ttft_ms=1, itl_ms=0, tokens=2, sequence=["429", "ok"], retry_after_s=0.4) as sim:
        plan = write(
            tmp_path,
            sim.base_url,
            load={"concurrency": 1},
            requests=3,
            retry={"attempts": 3, "backoff": "10ms", "jitter": 0},
        )
        summary = measured(plan, cwd=tmp_path)
        received = sim.stats()["requests"]
    requests = summary["requests"]
    accounts(requests)
    assert requests["sent"] == requests["ok"] == 3
    assert requests["attempts"] == received == 6
    for row in rows(tmp_path):
        assert row["attempts"] == 2
        assert row["last_send_ms"] - row["send_ms"] >= 400
        assert row["e2e_ms"] >= 400


@pytest.mark.slow
def test_planned_aborts_are_cancelled_and_counted(tmp_path: Path) -> None:
    with simulator(ttft_ms=5, itl_ms=50, tokens=40) as sim:
        plan = write(
            tmp_path,
            sim.base_url,
            load={"concurrency": 4},
            requests=8,
            limits={"cancel": {"share": 1, "after": "100ms"}},
        )
        ended = lens("run", "--json", plan, cwd=tmp_path)
        closed = sim.stats()["client_closed"]
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["cancelled"] == closed == 8
    assert all(row["abort_planned"] and 100 <= row["e2e_ms"] < 400 for row in rows(tmp_path))


@pytest.mark.slow
def test_a_budget_is_never_overspent(tmp_path: Path) -> None:
    """Requests in flight cost their most: what they may still cost is set aside before the next one is sent."""
    price = {"input": 100_000, "output": 100_000}  # 0.1 USD a token, the most that a plan may say
    with simulator(ttft_ms=5, itl_ms=1, tokens=5) as sim:
        path = tmp_path / "plan.json"
        path.write_text(
            json.dumps(
                {
                    "target": {"base_url": f"{sim.base_url}/v1", "model": "m", "price": price},
                    "workload": {"prompt": "light", "output_tokens": 5},
                    "load": {"concurrency": 4},
                    "requests": 500,
                    "limits": {"budget_usd": 20},
                }
            )
        )
        summary = measured(str(path), cwd=tmp_path)
    accounts(summary["requests"])
    assert 15 < summary["cost"]["usd"] <= 20
    assert summary["requests"]["unsent"] == {"budget": 500 - summary["requests"]["sent"]}


@pytest.mark.slow
def test_too_many_errors_end_the_run(tmp_path: Path) -> None:
    with simulator(ttft_ms=2, itl_ms=0, tokens=1, faults={"500": 0.9}) as sim:
        plan = write(
            tmp_path,
            sim.base_url,
            load={"rate": 40},
            duration="60s",
            limits={"max_error_rate": 0.2, "error_window": "2s"},
        )
        ended = lens("run", "--json", plan, cwd=tmp_path, timeout=40)
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["planned"] == 2400
    assert requests["unsent"]["stopped"] > 2000


@pytest.mark.slow
def test_phases_are_reported_apart_and_the_unmeasured_one_is_in_no_total(tmp_path: Path) -> None:
    with simulator(ttft_ms=2, itl_ms=1, tokens=3) as sim:
        phases = [
            {"name": "warm", "duration": "1s", "load": {"concurrency": 2}, "measure": False},
            {"name": "steps", "duration": "2s", "load": {"rate": {"steps": [20, 60]}}},
            {"name": "closed", "requests": 30, "load": {"concurrency": 3}},
        ]
        summary = measured(write(tmp_path, sim.base_url, phases=phases), cwd=tmp_path)
        received = sim.stats()["requests"]
    accounts(summary["requests"])
    by_name = {phase["name"]: phase for phase in summary["run"]["phases"]}
    assert by_name["steps"]["requests"]["ok"] == 80
    assert by_name["closed"]["requests"]["ok"] == 30
    assert summary["requests"]["ok"] == 110
    assert received == 110 + by_name["warm"]["requests"]["sent"]
    assert by_name["warm"]["measured"] is False


@pytest.mark.slow
def test_a_trace_replays_every_slot_at_its_time(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    stamps = sorted(np.random.default_rng(3).integers(0, 4000, 300).tolist())
    lines = [{"timestamp": at, "input_length": 20, "output_length": 2, "hash_ids": [i]} for i, at in enumerate(stamps)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with simulator(ttft_ms=1, itl_ms=0, tokens=2) as sim:
        plan = write(tmp_path, sim.base_url, workload={"trace": str(trace), "time_scale": 0.5}, load={"replay": True})
        summary = measured(plan, cwd=tmp_path)
    accounts(summary["requests"])
    assert summary["requests"]["planned"] == summary["requests"]["ok"] == 300
    intended = np.sort([row["wall_time_ns"] for row in rows(tmp_path)])
    assert np.allclose((intended - intended[0]) / 1e6, (np.array(stamps) - stamps[0]) * 0.5, atol=0.001)
