"""Runs of several load hosts with real processes: the hosts are agents on this machine, as `--cluster local` starts them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from llm_latency_lens.engine import __version__
from llm_latency_lens.engine.frames import Frames, frame
from llm_latency_lens.engine.hosts.host import Host
from llm_latency_lens.engine.hosts.link import Link
from llm_latency_lens.engine.hosts.messages import FromAgent, Hello, Invitation, Taken, Tick
from llm_latency_lens.engine.hosts.relay import TickFolder
from tests.support_hosts import LOCAL, agents_of, counts_by_tag, descendants, host_dirs, rows_of_hosts
from tests.support_lens import accounts, finish, lens, manifest_of, measured, running
from tests.support_simulator import FAST, simulator

TARGET = ("--model", "m", "--output-tokens", "6")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def all_gone(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    """Whether the processes end in time. Zombies of a parent that is this test have ended."""
    end = monotonic() + timeout_s
    while monotonic() < end:
        if not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
            return True
        sleep(0.05)
    return False


@pytest.mark.slow
def test_three_hosts_make_one_run(tmp_path: Path) -> None:
    """The server counts what the summary says, the hosts' logs add up to the driver's cell by cell, and every slot of the
    plan was sent by one host, at its time."""
    with simulator(**FAST) as sim:
        base = ("--base-url", f"{sim.base_url}/v1", *TARGET)
        summary = measured(*base, "--rate", "60", "--duration", "2s", "--hosts", "3", *LOCAL, cwd=tmp_path)
        log = sim.log(120)
    accounts(summary["requests"])
    assert len(log) == summary["requests"]["sent"] == summary["requests"]["ok"] == 120
    assert summary["client"]["workers"] == 3
    run_dir = (tmp_path / "runs" / "latest").resolve()
    hosts = summary["run"]["hosts"]
    assert [host["state"] for host in hosts] == ["done"] * 3
    assert sum(host["requests"]["ok"] for host in hosts) == 120
    for host in hosts:
        accounts(host["requests"])
        assert host["clock_bound_us"] is not None
        assert host["start_skew_us"] is not None
    added: dict[str, Counter[int]] = {}
    for folder in host_dirs(run_dir):
        for tag, counts in counts_by_tag(folder / "totals.hlog").items():
            added.setdefault(tag, Counter()).update(counts)
    assert added == counts_by_tag(run_dir / "totals.hlog") != {}
    rows = rows_of_hosts(run_dir)
    assert sorted(row["request"] for row in rows) == list(range(120))
    assert {row["worker"] for row in rows} == {0, 1, 2}
    assert not list((tmp_path / "state").rglob("requests.msgpack")), "the driver has them"


@pytest.mark.slow
def test_a_host_that_dies_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """The plan's slots still add up; what the host had in flight is lost, what it would have sent is worker_down."""
    with simulator(ttft_ms=200, itl_ms=1, tokens=6) as sim:
        arguments = (*TARGET, "--rate", "60", "--duration", "4s", "--hosts", "2", *LOCAL)
        with running("--base-url", f"{sim.base_url}/v1", *arguments, cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path, timeout=60)
            agents = agents_of(process.pid)
            everything = descendants(agents)
            wait_for_ticks(segments, 2)
            agents[1].kill()
            ended = finish(process)
    assert ended.code == 0, ended.stderr
    summary = ended.summary
    accounts(summary["requests"])
    assert summary["requests"]["planned"] == 240
    assert summary["requests"]["unsent"]["worker_down"] > 0
    done, lost = sorted(summary["run"]["hosts"], key=lambda host: str(host["state"]))
    assert (done["state"], lost["state"]) == ("done", "lost")
    assert done["requests"]["ok"] == 120
    assert lost["requests"]["planned"] == lost["requests"]["sent"] + lost["requests"]["unsent"]["worker_down"]
    assert "host_lost" in [reason["code"] for reason in summary["verdict"]["reasons"]]
    assert all_gone(everything)
    [left] = (tmp_path / "state").rglob("summary.json")
    assert json.loads(left.read_text())["requests"]["failed"]["lost"] > 0, "the host has completed its own part"


@pytest.mark.slow
def test_a_killed_driver_ends_its_hosts_and_recover_takes_what_they_have(tmp_path: Path) -> None:
    """Nobody counts what orphans send. Everything that they had sent is in the recovered report."""
    with simulator(**FAST) as sim:
        arguments = (*TARGET, "--rate", "60", "--duration", "60s", "--hosts", "2", *LOCAL)
        with running("--base-url", f"{sim.base_url}/v1", *arguments, cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path, timeout=60)
            everything = descendants(agents_of(process.pid))
            run_dir = (tmp_path / "runs" / "latest").resolve()
            wait_for_ticks(segments, 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert all_gone(everything)
            ended = lens("recover", "--json", str(run_dir), cwd=tmp_path)
        log = sim.log()
    assert ended.code == 0, ended.stderr
    summary = ended.summary
    accounts(summary["requests"])
    assert summary["requests"]["sent"] == len(log) > 0
    assert [host["state"] for host in summary["run"]["hosts"]] == ["lost", "lost"]
    assert len(rows_of_hosts(run_dir)) == len(log) + sum(
        1 for row in rows_of_hosts(run_dir) if row["outcome"] == "unsent"
    )


@pytest.mark.slow
def test_ctrl_c_drains_all_hosts_and_phases_begin_together(tmp_path: Path) -> None:
    """A phase that its requests end is over when the slowest host is done with it."""
    plan = tmp_path / "plan.yaml"
    with simulator(**FAST) as sim:
        plan.write_text(
            f"target: {{base_url: '{sim.base_url}/v1', model: m, parameters: {{max_tokens: 6}}}}\n"
            "hosts: {count: 2, cluster: local}\n"
            "phases:\n"
            "  - {name: first, requests: 40, load: {concurrency: 4}}\n"
            "  - {name: second, duration: 60s, load: {rate: 20}}\n"
        )
        with running(str(plan), cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path, timeout=60)
            wait_for_ticks(segments, 2)
            process.send_signal(signal.SIGINT)
            ended = finish(process)
        log = sim.log()
    assert ended.code == 130
    summary = ended.summary
    accounts(summary["requests"])
    assert summary["requests"]["sent"] == len(log)
    assert summary["run"]["ended_by"] == "interrupted"
    first, second = summary["run"]["phases"]
    assert first["requests"]["ok"] == 40
    assert second["start_s"] >= first["duration_s"] - 0.001
    assert set(second["requests"]["unsent"]) == {"stopped"}


def test_a_host_that_cannot_reach_the_target_ends_the_attempt(tmp_path: Path) -> None:
    """Nobody starts unless everybody can; the message says which host and why."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = lens("run", "--base-url", f"http://127.0.0.1:{port}/v1", *TARGET, "--hosts", "2", *LOCAL, cwd=tmp_path)
    assert ended.code == 1
    assert "host " in ended.stderr
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "runs").iterdir()), "nothing was sent: there is no run"


def test_hosts_of_another_version_are_refused() -> None:
    """Their records may mean something else."""
    with socket.create_server(("127.0.0.1", 0)) as driver:
        host, port = driver.getsockname()
        invitation = Invitation(version="0.0.1", driver=(host, port), token="t", index=0, work=b"")
        done = subprocess.run(
            [sys.executable, "-m", "llm_latency_lens.cli.processes.host"],
            input=frame(invitation),
            capture_output=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"version {__version__}" in done.stderr.decode()
    assert "the driver 0.0.1" in done.stderr.decode()


@pytest.mark.slow
def test_a_stranger_at_the_drivers_port_changes_nothing(tmp_path: Path) -> None:
    """Port scanners knock at every open port: the run must neither end nor count them as hosts."""
    said = [b"GET / HTTP/1.1\r\n\r\n", b"\x03\x00\x00\x00\xc1\xc1\xc1", b"\x04\x00\x00\x00\x82\xa1\xff\xa1"]
    said.append(frame(Hello(token="ü", index=0, name="stranger", boot_id="", workers=1)))
    with simulator(**FAST) as sim:
        arguments = (*TARGET, "--rate", "60", "--duration", "3s", "--hosts", "2", *LOCAL)
        with running("--base-url", f"{sim.base_url}/v1", *arguments, cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path, timeout=60)
            wait_for_ticks(segments, 1)
            ports = {
                each.laddr.port for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"
            }
            for port in ports:
                for words in said:
                    with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
                        stranger.sendall(words)
            ended = finish(process)
    assert ports
    assert ended.code == 0, ended.stderr
    assert len(ended.summary["run"]["hosts"]) == 2
    assert ended.summary["requests"]["ok"] == 180


def test_a_tick_that_tmpfs_does_not_take_is_put_later(tmp_path: Path) -> None:
    """A full tmpfs must not end the driver: what is not confirmed is still with the host, and comes into its place."""
    folder = tmp_path / "host-0"
    folder.write_text("in the way")  # a folder cannot be made there, as if there were no room
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname(), timeout=20)
        near, _ = server.accept()
    with near, far:
        link: Link[FromAgent] = Link(near, FromAgent)  # type: ignore[arg-type]  # a union is a type to msgspec
        host = Host(link, Hello(token="", index=0, name="h", boot_id="", workers=1), TickFolder(folder))
        host.take([Tick(number=0, content=b"first"), Tick(number=1, content=b"second")], 0)
        assert host.state.last_tick == -1
        folder.unlink()
        host.work(0)
        confirmed = Frames(Taken).feed(far.recv(1 << 16))
    assert [each.number for each in confirmed if isinstance(each, Taken)] == [0, 1]
    assert TickFolder(folder).numbers() == [0, 1]
    assert TickFolder(folder).read(1) == b"second"


def wait_for_ticks(segments: Path, count: int) -> None:
    """Until the driver's collector has closed so many ticks."""
    snapshot, end = segments / "snapshot.json", monotonic() + 60
    while monotonic() < end:
        if snapshot.exists() and json.loads(snapshot.read_text())["tick"] >= count:
            return
        sleep(0.02)
    raise AssertionError(f"no tick {count} in {segments}")
