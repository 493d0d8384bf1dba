"""`lens run` as a user runs it, against the simulator that knows the truth. Real processes, real sockets."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest

from tests.support_lens import accounts, finish, lens, manifest_of, measured, running
from tests.support_simulator import simulator

TARGET = ("--model", "m")

# What the lens must make of each fault of the simulator (METRICS: Outcomes), and why it is not obvious.
OUTCOMES = {
    "429": "http_rate_limited",
    "401": "http_auth",
    "403": "http_auth",
    "400": "http_invalid",
    "404": "http_invalid",
    "500": "http_server",
    "503": "http_overloaded",
    "529": "http_overloaded",
    "error_event": "stream_error",  # inside a 200
    "truncate": "stream_truncated",  # a clean end of body without [DONE]
    "cut": "stream_truncated",  # FIN inside the chunked coding
    "reset": "stream_truncated",  # RST after the reply began
    "stall": "timeout_total",
    "malformed_json": "stream_malformed",
    "bad_http": "stream_malformed",
    "empty": "connect_reset",  # not one byte of a reply on a fresh connection
    "content_filter": "content_filtered",
    "slow_head": "ok",
    "keep_alive_lie": "ok",  # announces keep-alive and closes: stale, not failed
    "split": "ok",  # every byte in a write of its own
    "no_usage": "ok",
    "one_chunk": "ok",
    "crlf": "ok",
    "comments": "ok",
}


def rows(cwd: Path) -> list[dict[str, Any]]:
    """The request rows of the latest run in `cwd`."""
    with (cwd / "runs" / "latest" / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def sent_by_tick(cwd: Path) -> int:
    """The requests sent in all ticks of the latest run in `cwd`; none is in flight when its last one ends."""
    ticks = [json.loads(line) for line in (cwd / "runs" / "latest" / "intervals.jsonl").read_text().splitlines()]
    assert all(tick["in_flight"] >= 0 for tick in ticks)
    assert ticks[-1]["in_flight"] == 0
    return sum(interval["requests"]["sent"] for tick in ticks for interval in tick["intervals"])


def outcomes(requests: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in ({"ok": requests["ok"]} | requests["failed"]).items() if count}


@pytest.mark.slow
def test_ttft_and_itl_are_those_of_the_server_log(tmp_path: Path) -> None:
    """100 streams x 50 tokens/s: p50 within 0.3 ms, p99 within 2 ms of what the server did."""
    with simulator(flags=("--log-tokens",), ttft_ms="lognormal:50:0.1", itl_ms=20, tokens=50) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", *TARGET, "--concurrency", "100", "--requests", "200", cwd=tmp_path
        )
        log = [row for row in sim.log() if row["status"] == 200]
    truth = np.array([row["first_token_sent_ns"] - row["arrival_ns"] for row in log]) / 1e6
    assert len(truth) == 200
    ttft = summary["metrics"]["ttft_ms"]
    assert abs(ttft["p50"] - np.percentile(truth, 50, method="inverted_cdf")) <= 0.3
    assert abs(ttft["p99"] - np.percentile(truth, 99, method="inverted_cdf")) <= 2
    assert summary["client"]["clock"] == "kernel"
    assert summary["tokens"] == {
        "input": 200 * log[0]["prompt_tokens"],
        "output": 10_000,
        "cached": 0,
        "reasoning": 0,
        "source": "provider",
    }
    gaps = np.concatenate([np.diff(row["token_sent_ns"]) for row in log]) / 1e6
    itl = summary["metrics"]["itl_ms"]
    assert abs(itl["p50"] - np.percentile(gaps, 50)) <= 0.3
    assert itl["count"] + round(summary["client"]["itl_coalesced_share"] * 200 * 49) == 200 * 49


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "outcome"), OUTCOMES.items())
def test_every_fault_ends_in_its_outcome(fault: str, outcome: str, tmp_path: Path) -> None:
    """A failure under the wrong name sends its reader to the wrong culprit."""
    with simulator(ttft_ms=2, itl_ms=1, tokens=6, faults={fault: 1.0}) as sim:
        ended = lens(
            "run", "--json", "--base-url", f"{sim.base_url}/v1", *TARGET,
            "--requests", "8", "--concurrency", "2", "--timeout", "1s", cwd=tmp_path,
        )  # fmt: skip
        received = sim.stats()["requests"]
    requests = ended.summary["requests"]
    accounts(requests)
    assert outcomes(requests) == {outcome: 8}
    assert received == requests["sent"] == 8
    assert ended.code == (0 if outcome == "ok" else 1)


@pytest.mark.slow
def test_the_books_balance_with_every_fault_mixed_in(tmp_path: Path) -> None:
    """Sent = sum of outcomes = what the server counted; events parsed = events sent on every complete stream."""
    faults = dict.fromkeys(OUTCOMES, 0.035)
    with simulator(ttft_ms=2, itl_ms=1, tokens=8, faults=faults) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", *TARGET, "--requests", "600", "--concurrency", "24",
            "--timeout", "2s", "--workers", "2", cwd=tmp_path,
        )  # fmt: skip
        stats, log = sim.stats(), sim.log()
    requests = summary["requests"]
    accounts(requests)
    assert requests["planned"] == requests["sent"] == stats["requests"] == sent_by_tick(tmp_path) == 600
    expected: dict[str, int] = {}
    for fault, count in stats["by_fault"].items():
        name = OUTCOMES.get(fault, "ok")
        expected[name] = expected.get(name, 0) + count
    assert outcomes(requests) == expected
    sent = {
        row["id"]: row["token_events"] for row in log if row["completed"] and OUTCOMES.get(row["fault"], "ok") == "ok"
    }
    parsed = [row["token_events"] for row in rows(tmp_path) if row["outcome"] == "ok"]
    assert sorted(parsed) == sorted(sent.values())


@pytest.mark.slow
@pytest.mark.parametrize("load", [("--rate", "300"), ("--concurrency", "7")], ids=["rate", "concurrency"])
def test_two_workers_share_exactly(load: tuple[str, str], tmp_path: Path) -> None:
    """More workers must change who sends a slot, never which slots there are nor when they are due."""
    with simulator(ttft_ms=5, itl_ms=0, tokens=1) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", *TARGET, *load, "--requests", "301", "--workers", "2", cwd=tmp_path
        )
        log = sim.log()
    assert summary["requests"]["planned"] == summary["requests"]["ok"] == len(log) == 301
    made = rows(tmp_path)
    assert sorted(row["request"] for row in made) == list(range(301))
    assert {row["worker"] for row in made} == {0, 1}
    assert {row["request"] % 2 == row["worker"] for row in made} == {True}
    if load[0] == "--rate":
        intended = np.sort([row["wall_time_ns"] for row in made])
        assert np.allclose(np.diff(intended), 1e9 / 300, atol=2)
    else:
        starts = sorted((row["arrival_ns"], row["end_sent_ns"]) for row in log)
        running_at = [sum(begin <= at < end for begin, end in starts) for at, _ in starts]
        assert max(running_at) <= 7


@pytest.mark.slow
def test_an_open_loop_keeps_its_rate_and_is_never_early(tmp_path: Path) -> None:
    """The rate is the promise of an open loop; a request sent early would hide the server's queue."""
    with simulator(ttft_ms=1, itl_ms=0, tokens=1) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", *TARGET, "--rate", "500", "--duration", "3s", cwd=tmp_path
        )
        log = sim.log()
    assert summary["requests"]["planned"] == summary["requests"]["sent"] == len(log) == 1500
    assert summary["metrics"]["lateness_ms"]["min"] >= 0
    assert summary["run"]["load"] == "open"
    assert abs(summary["throughput"]["requests_per_s"] / 500 - 1) < 0.02


@pytest.mark.slow
def test_a_worker_over_its_limit_uses_a_core_and_not_more(tmp_path: Path) -> None:
    """Most of the work is done after the phase's last slot: that time counts on both sides of the division.

    How much of a core it got depends on the machine's other load, so what the kernel counted of it is the least that
    it must report: a look that comes late sees less of it, never more.
    """
    with simulator(ttft_ms=0, itl_ms=0, tokens=500) as sim:
        arguments = (
            "--base-url",
            f"{sim.base_url}/v1",
            *TARGET,
            "--rate",
            "1500",
            "--duration",
            "1s",
            "--workers",
            "1",
        )
        with running(*arguments, cwd=tmp_path) as process:
            worker = psutil.Process(manifest_of(tmp_path)[1]["pids"]["worker-0"])
            before_s = after_s = cpu_s(worker)
            while process.poll() is None:
                after_s = max(after_s, cpu_s(worker))
                sleep(0.01)
            ended = finish(process)
    assert ended.code == 0, ended.stderr
    summary = ended.summary
    accounts(summary["requests"])
    duration_s, utilisation = summary["run"]["duration_s"], summary["client"]["cpu_utilisation"]
    assert duration_s > 1.5
    assert utilisation <= 1.02
    assert utilisation * duration_s > 0.8 * (after_s - before_s) > 0


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process so far, s; 0 once it has ended."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


@pytest.mark.slow
def test_a_frozen_server_is_felt_in_the_scheduled_latencies(tmp_path: Path) -> None:
    """Coordinated omission: requests that came on time waited, and the scheduled latencies say how long."""
    with simulator(ttft_ms=1, itl_ms=0, tokens=1, freeze=[[1.0, 2.0]]) as sim:
        summary = measured(
            "--base-url", f"{sim.base_url}/v1", *TARGET, "--rate", "100", "--duration", "4s", "--max-in-flight", "5",
            cwd=tmp_path,
        )  # fmt: skip
    accounts(summary["requests"])
    assert summary["requests"]["planned"] == 400
    service, scheduled = summary["metrics"]["e2e_ms"], summary["metrics"]["e2e_scheduled_ms"]
    assert scheduled["p90"] > 300 > service["p90"]


@pytest.mark.slow
@pytest.mark.parametrize("victims", ["worker", "collector", "both"])
def test_killed_processes_are_replaced_and_the_books_still_balance(victims: str, tmp_path: Path) -> None:
    """A death costs the requests in flight, never a slot, and no request is counted twice."""
    with simulator(ttft_ms=20, itl_ms=5, tokens=10) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", *TARGET, "--rate", "100", "--duration", "5s", "--workers", "2")
        with running(*arguments, cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path)
            dice = random.Random(victims)
            for _ in range(3):
                sleep(dice.uniform(0.6, 1.0))
                pids = json.loads((segments / "run.json").read_text())["pids"]
                if victims != "collector":
                    os.kill(pids[f"worker-{dice.randrange(2)}"], signal.SIGKILL)
                if victims != "worker":
                    os.kill(pids["collector"], signal.SIGKILL)
            ended = finish(process)
        received = sim.stats()["requests"]
    assert ended.code == 0, ended.stderr
    summary = ended.summary
    accounts(summary["requests"])
    assert summary["requests"]["planned"] == 500
    assert summary["requests"]["sent"] == received == sent_by_tick(tmp_path)
    assert summary["client"]["ring_drops"] == 0
    assert summary["client"]["restarts"] == (0 if victims == "collector" else 3)
    assert summary["client"]["collector_restarts"] == (0 if victims == "worker" else 3)
    made = rows(tmp_path)
    assert len({row["request"] for row in made}) == len(made) == 500
    logged = [json.loads(line) for line in (tmp_path / "runs/latest/log.jsonl").read_text().splitlines()]
    deaths = [each["how"] for each in logged if each["event"].endswith("_died")]
    assert deaths == ["signal SIGKILL"] * (6 if victims == "both" else 3)
    assert summary["verdict"]["state"] == ("INVALID" if victims != "collector" else summary["verdict"]["state"])


@pytest.mark.slow
def test_ctrl_c_drains_and_writes_a_full_report(tmp_path: Path) -> None:
    """Ctrl-C is the usual end of a long run: it must not cost the numbers measured so far."""
    with simulator(ttft_ms=50, itl_ms=10, tokens=20) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", *TARGET, "--rate", "50", "--duration", "60s")
        with running(*arguments, cwd=tmp_path) as process:
            manifest_of(tmp_path)
            end = monotonic() + 10
            while sim.stats()["requests"] < 20:
                assert monotonic() < end
                sleep(0.05)
            process.send_signal(signal.SIGINT)
            ended = finish(process)
        received = sim.stats()["requests"]
    assert ended.code == 130
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["planned"] == 3000
    assert requests["sent"] == requests["ok"] == received
    assert requests["unsent"] == {"stopped": 3000 - received}


@pytest.mark.slow
def test_a_run_that_overruns_its_drain_counts_what_is_in_flight(tmp_path: Path) -> None:
    """Requests that are given up at the end are reported, or slow servers would look like fast ones."""
    plan = tmp_path / "plan.json"
    with simulator(ttft_ms=30_000, itl_ms=0, tokens=1) as sim:
        plan.write_text(
            json.dumps(
                {
                    "target": {"base_url": f"{sim.base_url}/v1", "model": "m"},
                    "load": {"concurrency": 3},
                    "duration": "1s",
                    "limits": {"drain": "500ms"},
                }
            )
        )
        ended = lens("run", "--json", str(plan), cwd=tmp_path)
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["in_flight_at_end"] == requests["sent"] == 3


@pytest.mark.slow
def test_an_slo_that_fails_is_exit_code_3(tmp_path: Path) -> None:
    """A pipeline sees only the exit code: 0 where every objective holds or is open, 4 for an open one with --strict."""
    with simulator(ttft_ms=20, itl_ms=1, tokens=3) as sim:
        base = ("run", "--json", "--base-url", f"{sim.base_url}/v1", *TARGET, "--requests", "40", "--slo")
        held = lens(*base, "ttft_ms.p50 <= 5000", "--slo", "request: ttft_ms <= 5000 and tpot_ms <= 900", cwd=tmp_path)
        undecided = lens(*base, "ttft_ms.p99 <= 5000", cwd=tmp_path)
        strict = lens(*base, "ttft_ms.p99 <= 5000", "--strict", cwd=tmp_path)
        broken = lens(*base, "ttft_ms.p50 <= 1", cwd=tmp_path)
    assert held.code == 0
    assert [slo["state"] for slo in held.summary["slo"]] == ["PASS", "PASS"]
    assert held.summary["throughput"]["goodput_share"] == 1
    assert broken.code == 3
    assert broken.summary["slo"][0]["state"] == "FAIL"
    assert (undecided.code, strict.code) == (0, 4)
    (slo,) = undecided.summary["slo"]
    assert slo["state"] == "UNDECIDED"
    assert slo["needs_requests"] > 100
    assert slo["needs_s"] > 0


@pytest.mark.slow
def test_a_run_ends_when_enough_is_known(tmp_path: Path) -> None:
    """The limits stay upper limits: an easy goal must not take the two minutes."""
    with simulator(ttft_ms=20, itl_ms=1, tokens=3) as sim:
        base = ("--base-url", f"{sim.base_url}/v1", *TARGET)
        summary = measured(*base, "--rate", "100", "--duration", "2m", "--until", "e2e_ms.p50 +-50%", cwd=tmp_path)
        counted = measured(*base, "--requests", "20", cwd=tmp_path)
    accounts(summary["requests"])
    assert summary["run"]["ended_by"] == "until"
    assert summary["run"]["duration_s"] < 110
    low, high = summary["metrics"]["e2e_ms"]["ci95"]["p50"]
    assert high - low <= summary["metrics"]["e2e_ms"]["p50"]
    assert set(summary["steady"]) >= {"state", "from_s", "to_s", "reason", "requests", "throughput", "metrics"}
    assert counted["run"]["ended_by"] == "requests"


@pytest.mark.slow
def test_no_process_of_a_run_leaves_a_core_file(tmp_path: Path) -> None:
    """A core file of a process holds the API keys."""
    with simulator(ttft_ms=1, itl_ms=0, tokens=1) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", *TARGET, "--rate", "10", "--duration", "30s")
        with running(*arguments, cwd=tmp_path) as process:
            _, manifest = manifest_of(tmp_path)
            assert {"supervisor", "collector", "worker-0"} <= set(manifest["pids"])
            for pid in manifest["pids"].values():
                assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0
            process.send_signal(signal.SIGINT)
            assert finish(process).code == 130


@pytest.mark.slow
def test_secrets_stand_in_no_output(tmp_path: Path) -> None:
    """The key is in no file, no output and no process list, whatever fails."""
    key = "sk-very-secret-0123456789"
    with simulator(flags=("--require-key", "another"), ttft_ms=1, itl_ms=0, tokens=1) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", *TARGET, "--requests", "400")
        with running(*arguments, "--api-key-file", str(_key(tmp_path, key)), cwd=tmp_path) as process:
            manifest_of(tmp_path)
            seen = b"".join(
                path.read_bytes()
                for pid in _family(process.pid)
                for path in [Path(f"/proc/{pid}/cmdline")]
                if path.exists()
            )
            ended = finish(process)
    assert ended.code == 1
    assert key.encode() not in seen
    assert key not in ended.stdout + ended.stderr
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def _key(folder: Path, key: str) -> Path:
    path = folder / "key"
    path.write_text(key + "\n")
    return path


def _family(pid: int) -> list[int]:
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


BAD_INPUT = [
    (("--base-url", "ftp://x", "--model", "m"), {}, 2, "http://"),
    (("--base-url", "http://127.0.0.1:99999/v1", "--model", "m"), {}, 2, "Port out of range"),
    (("--base-url", "http://nohost.invalid/v1", "--model", "m"), {}, 1, "cannot resolve nohost.invalid"),
    (("--base-url", "http://127.0.0.1:1/v1", "--model", "m"), {}, 1, "refused the connection"),
    (("--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--api-key-env", "NO_KEY"), {}, 2, "NO_KEY is not set"),
    (
        ("--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--api-key-env", "A_KEY"),
        {"A_KEY": ""},
        2,
        "A_KEY is empty",
    ),
    (("--model", "m"), {}, 2, "OPENAI_API_KEY"),
    (("--simulate", "--out", "/proc/nowhere"), {}, 1, "--out"),
    (("--simulate", "--concurrency", "2", "--rate", "3"), {}, 2, "cannot both be given"),
    (("--simulate", "--rate", "-5/s"), {}, 2, "rate must be > 0, got '-5/s' (--rate)"),
    (("--simulate", "--slo", "ttft_ms.p98 < 5"), {}, 2, "did you mean 'p99'"),
    (("nosuch.yaml",), {}, 2, "nosuch.yaml"),
]


@pytest.mark.parametrize(("arguments", "env", "code", "words"), BAD_INPUT)
def test_bad_input_is_one_line_with_the_way_out(
    arguments: tuple[str, ...], env: dict[str, str], code: int, words: str, tmp_path: Path
) -> None:
    """A traceback tells the user nothing about what to change."""
    ended = lens("run", *arguments, cwd=tmp_path, env=env)
    assert ended.code == code
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1
    assert words in ended.stderr


def test_too_few_file_descriptors_are_told_with_the_number(tmp_path: Path) -> None:
    """Found out in the middle of a run it would be an error of each request beyond the limit."""
    import subprocess
    import sys

    script = (
        "ulimit -n 200; exec "
        + f"{sys.executable} -m llm_latency_lens.cli run --simulate --concurrency 500 --requests 600"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "564 file descriptors" in done.stderr
    assert "ulimit -n 564" in done.stderr
