"""Right even when late: a worker kept from its core, with the tap and without it, against the server's own log."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import trustme

from llm_latency_lens.engine.records.tap_status import TapStatus, read_tap_status
from tests import support_seccomp, support_small_tap
from tests.support_lens import LENS, accounts, lens, measured, running
from tests.support_simulator import Simulator, simulator
from tests.support_stamps import STOP_S, agrees, found, needs_tap, stop_again_and_again, truths

TARGET = ("--model", "m", "--workers", "1")
STREAMS, REQUESTS, TOKENS = 50, 150, 50
SCRIPT: dict[str, Any] = {"ttft_ms": "lognormal:50:0.1", "itl_ms": 20, "tokens": TOKENS}
LOAD = (*TARGET, "--concurrency", str(STREAMS), "--requests", str(REQUESTS))

pytestmark = pytest.mark.slow


def stopped_run(sim: Simulator, url: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """The summary of a run whose worker is stopped again and again from its first reply on."""
    with running("--base-url", url, *LOAD, *arguments, cwd=cwd) as run:
        worker = found(run, "engine.worker")
        deadline = monotonic() + 20
        while not sim.stats()["requests"] and monotonic() < deadline:
            sleep(0.01)
        stop_again_and_again(run, worker)
        assert run.stdout is not None
        summary: dict[str, Any] = json.loads(run.stdout.read())
    return summary


@needs_tap
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_stopped_worker_changes_no_latency_while_the_tap_holds_clones(host: str, tmp_path: Path) -> None:
    """300 ms without a read, twice a second: every event still has its own stamp. Without a tap TTFT would be off by
    100 ms and more."""
    with simulator(flags=("--log-tokens", "--host", host), **SCRIPT) as sim:
        summary = stopped_run(sim, f"{sim.base_url}/v1", "--stamps", "segment", cwd=tmp_path)
        ttft, gaps = truths(sim, REQUESTS)
    assert summary["requests"]["ok"] == REQUESTS
    client = summary["client"]
    assert client["stamps"] == "segment"
    assert client["itl_coalesced_share"] < 0.005
    assert client["ttft_coalesced_share"] == 0
    assert agrees(summary["metrics"]["ttft_ms"], ttft, 0.5), summary["metrics"]["ttft_ms"]
    assert agrees(summary["metrics"]["itl_ms"], gaps, 0.5), summary["metrics"]["itl_ms"]
    # A stop that falls between two system calls of one read (a microsecond) costs that one event its own stamp.
    assert summary["metrics"]["itl_ms"]["p99_9"] is None or summary["metrics"]["itl_ms"]["p99_9"] < gaps.max() + 2
    assert client["loop_lag_us"]["max"] > 1e3 * (STOP_S * 1e3) / 3  # it was late, and knows it


def test_a_stopped_worker_is_never_valid_without_the_tap(tmp_path: Path) -> None:
    """One stamp per read: what merged in the kernel is late, so the run must not be believed."""
    with simulator(**SCRIPT) as sim:
        summary = stopped_run(sim, f"{sim.base_url}/v1", "--stamps", "read", cwd=tmp_path)
    assert summary["client"]["stamps"] == "read"
    assert summary["verdict"]["state"] == "INVALID"
    assert {reason["code"] for reason in summary["verdict"]["reasons"]} & {"ttft_coalesced", "client_stopped"}


@needs_tap
def test_segments_keep_their_stamps_under_tls_too(tmp_path: Path) -> None:
    """One TLS record is what one write became: the reads end at records."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    chain, key, root = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(root))
    flags = ("--log-tokens", "--certfile", str(chain), "--keyfile", str(key))
    with simulator(flags=flags, **SCRIPT) as sim:
        plan = tmp_path / "plan.yaml"
        plan.write_text(f"targets: [{{base_url: '{sim.base_url}/v1', model: m, ca_file: '{root}'}}]\n")
        with running(str(plan), *LOAD[2:], "--stamps", "segment", cwd=tmp_path) as run:
            stop_again_and_again(run, found(run, "engine.worker"))
            assert run.stdout is not None
            summary = json.loads(run.stdout.read())
        # The server's own arrival stamp waits for the other handshakes: it is not the truth about TTFT.
        _, gaps = truths(sim, REQUESTS)
    assert summary["requests"]["ok"] == REQUESTS
    assert summary["client"]["itl_coalesced_share"] < 0.005
    assert summary["client"]["ttft_coalesced_share"] == 0
    assert agrees(summary["metrics"]["itl_ms"], gaps, 1), summary["metrics"]["itl_ms"]


@contextmanager
def hogs(per_core: int) -> Iterator[None]:
    """Busy loops on all cores, each in a session of its own, as another program would be."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command, start_new_session=True) for _ in range(per_core * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@needs_tap
def test_a_starved_worker_measures_right_with_the_tap_and_says_what_it_went_through(tmp_path: Path) -> None:
    """Four busy loops per core: the worker waits for a CPU, and its latencies are still the server's."""
    with simulator(flags=("--log-tokens",), **SCRIPT) as sim, hogs(4):
        summary = measured("--base-url", f"{sim.base_url}/v1", *LOAD, "--stamps", "segment", cwd=tmp_path)
        ttft, gaps = truths(sim, REQUESTS)
    assert summary["client"]["run_queue_wait_share"] > 0
    assert agrees(summary["metrics"]["ttft_ms"], ttft, 1), summary["metrics"]["ttft_ms"]
    assert agrees(summary["metrics"]["itl_ms"], gaps, 1), summary["metrics"]["itl_ms"]


@needs_tap
def test_a_killed_tap_costs_the_stamps_of_later_segments_and_nothing_else(tmp_path: Path) -> None:
    """The run goes on with one stamp per read, and the ticks that this concerns are named."""
    with (
        simulator(**SCRIPT) as sim,
        running(
            "--base-url", f"{sim.base_url}/v1", *TARGET, "--concurrency", "20", "--duration", "4s", cwd=tmp_path
        ) as run,
    ):
        tap = found(run, "wire.tap")
        while not sim.stats()["requests"]:
            sleep(0.01)
        sleep(1.5)  # part of the run with the tap: there is nothing to wait for but time itself
        tap.kill()
        assert run.stdout is not None
        summary = json.loads(run.stdout.read())
    assert summary["client"]["stamps"] == "mixed"
    note = next(reason for reason in summary["verdict"]["reasons"] if reason["code"] == "stamps_mixed")
    assert "tick" in note["detail"]
    requests = summary["requests"]
    assert requests["sent"] == requests["ok"] + requests["in_flight_at_end"] + sum(requests["failed"].values())
    (log,) = tmp_path.glob("runs/2*/log.jsonl")
    assert "tap_ended" in log.read_text()


@needs_tap
def test_a_flood_that_overflows_the_tap_costs_stamps_and_no_request(tmp_path: Path) -> None:
    """Packets of the server beyond the tap's queue, here of connections that are opened and closed: the kernel drops
    clones, and the ticks in which segments may have merged are named. Before and after, each keeps its stamp."""
    with simulator(**SCRIPT) as sim:
        plan = tmp_path / "plan.yaml"
        plan.write_text(
            f"targets: [{{base_url: '{sim.base_url}/v1', model: m}}]\nworkers: 1\nstamps: read\n"
            f"load: {{concurrency: 5}}\nduration: 12s\noutput: {{dir: '{tmp_path / 'runs'}'}}\n"
        )
        command = [sys.executable, str(Path(support_small_tap.__file__)), str(plan), str(1 << 19)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            worker = found(run, "engine.worker")
            stopping = threading.Thread(target=stop_again_and_again, args=(run, worker))
            stopping.start()
            while sim.stats()["requests"] < 5:
                sleep(0.01)
            assert not tap_status(tmp_path).dropped
            flooded_s = monotonic() + 1.5  # several times that the worker is stopped
            while tap_status(tmp_path).dropped < 50 or monotonic() < flooded_s:
                with socket.create_connection(("127.0.0.1", sim.port)):
                    pass
            stopping.join()
        assert run.returncode == 0
    (path,) = tmp_path.glob("runs/2*/summary.json")
    summary = json.loads(path.read_bytes())
    accounts(summary["requests"])
    assert not summary["requests"]["failed"]
    client = summary["client"]
    assert client["stamps"] == "mixed"
    assert client["itl_coalesced_share"] > 0
    note = next(reason for reason in summary["verdict"]["reasons"] if reason["code"] == "stamps_mixed")
    assert "tick" in note["detail"]
    ticks = [json.loads(line) for line in (path.parent / "intervals.jsonl").read_text().splitlines()]
    assert {tick["client"]["stamps"] for tick in ticks} == {"segment", "read"}


def tap_status(cwd: Path) -> TapStatus:
    """The counters of the tap of the run in `cwd`."""
    (link,) = cwd.glob("runs/latest/.live")
    status = read_tap_status(link.resolve())
    assert status is not None
    return status


WITHOUT = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="dropping a capability takes root")


@needs_root
def test_without_the_capability_a_run_goes_on_and_says_how_to_grant_it(tmp_path: Path) -> None:
    """`stamps: auto`: one line, three ways to the capability, and one stamp per read."""
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        command = [*WITHOUT, *LENS, "run", "--base-url", f"{sim.base_url}/v1", *TARGET, "--requests", "5"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "CAP_NET_RAW" in line]
    assert "setcap" in line
    assert "AmbientCapabilities" in line
    assert "--cap-add NET_RAW" in line
    (summary,) = tmp_path.glob("runs/2*/summary.json")
    assert json.loads(summary.read_bytes())["client"]["stamps"] == "read"


@needs_root
def test_a_plan_that_insists_on_segment_stamps_is_refused_without_the_capability(tmp_path: Path) -> None:
    """Exit code 2, before anything is sent, and no directory left behind."""
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        command = [*WITHOUT, *LENS, "run", "--base-url", f"{sim.base_url}/v1", *TARGET, "--stamps", "segment"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert not sim.stats()["requests"]
    assert done.returncode == 2
    assert "CAP_NET_RAW" in done.stderr
    assert not [*tmp_path.glob("runs/2*")]


def without_packet_sockets(error: int) -> list[str]:
    return [sys.executable, str(Path(support_seccomp.__file__)), str(error)]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EAFNOSUPPORT], ids=errno.errorcode.get)
def test_a_seccomp_filter_on_packet_sockets_costs_the_tap_and_not_the_run(error: int, tmp_path: Path) -> None:
    """Hardened containers forbid AF_PACKET whatever the capabilities: one line that says so, one stamp per read."""
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        command = [*without_packet_sockets(error), *LENS, "run", "--base-url", f"{sim.base_url}/v1", *TARGET]
        done = subprocess.run([*command, "--requests", "5"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "one stamp per read" in line]
    assert ("CAP_NET_RAW" if error == errno.EPERM else os.strerror(error)) in line
    (summary,) = tmp_path.glob("runs/2*/summary.json")
    assert json.loads(summary.read_bytes())["client"]["stamps"] == "read"


@pytest.mark.parametrize("error", [errno.EPERM, errno.EAFNOSUPPORT], ids=errno.errorcode.get)
def test_a_plan_that_insists_on_segment_stamps_is_refused_under_that_filter(error: int, tmp_path: Path) -> None:
    """Exit code 2 before anything is sent: who asks for segment stamps must not get others."""
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        command = [*without_packet_sockets(error), *LENS, "run", "--base-url", f"{sim.base_url}/v1", *TARGET]
        done = subprocess.run(
            [*command, "--stamps", "segment"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert not sim.stats()["requests"]
    assert done.returncode == 2
    assert "stamps: segment is not possible" in done.stderr
    assert not [*tmp_path.glob("runs/2*")]


def test_a_server_on_the_workers_cores_is_named_before_the_run(tmp_path: Path) -> None:
    """The most common cause of a starved worker: a local server that nobody has pinned."""
    with simulator(ttft_ms=5, itl_ms=1, tokens=4) as sim:
        ended = lens("run", "--base-url", f"{sim.base_url}/v1", *TARGET, "--requests", "5", cwd=tmp_path)
    (line,) = [line for line in ended.stderr.splitlines() if "on this machine" in line]
    assert "taskset" in line
    assert f"pid {sim.pid}" in line
