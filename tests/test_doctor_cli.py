"""The real `lens doctor` on this machine, with real faults: limits, namespaces, links, control groups, signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import psutil
import pytest

from llm_latency_lens.collectors.doctor.machine import Machine
from llm_latency_lens.collectors.doctor.needs import needs_of
from llm_latency_lens.collectors.doctor.table import PASSIVE
from llm_latency_lens.collectors.doctor.window import busiest, read_counters, window_between
from llm_latency_lens.engine.runs.manifest import SEGMENTS

from . import support_seccomp
from .support_doctor import write_machine
from .support_lens import LENS, Ended, environment, lens, measured
from .support_netns import delay_link, needs_namespaces, needs_tun, veth_pair
from .support_server import read_request, scripted
from .support_simulator import simulator

STATES: Final = {"ok", "warn", "fail", "unknown"}
HOG: Final = "while True: pass"


def doctor(*arguments: str, cwd: Path, wrapper: Sequence[str] = ()) -> tuple[Ended, dict[str, Any]]:
    """`lens doctor --json ARGUMENTS` as a command of `wrapper`: how it ended, and its checks by name."""
    done = subprocess.run(
        [*wrapper, *LENS, "doctor", "--json", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    return ended, {check["name"]: check for check in ended.summary["checks"]} if done.stdout else {}


def failed(checks: dict[str, Any]) -> set[str]:
    """The checks that failed; not that of timers, which a machine that runs tests on all its cores may rightly fail."""
    return {name for name, check in checks.items() if check["state"] == "fail"} - {"timers"}


def plan_of(path: Path, base_url: str, **load: Any) -> str:
    plan = {
        "targets": [{"name": "t", "base_url": base_url, "model": "m"}],
        "phases": [{"name": "p", "duration": "5s", "load": load or {"concurrency": 4}}],
    }
    path.write_text(json.dumps(plan))
    return str(path)


def test_the_document_is_as_the_contract_says_and_an_ordinary_machine_is_not_unfit(tmp_path: Path) -> None:
    """Other tools read it; and a machine that is busy with tests can still measure."""
    ended, checks = doctor(cwd=tmp_path)
    found = ended.summary
    assert list(found) == ["schema", "state", "checks"]
    assert found["schema"] == 1
    assert found["state"] in ("READY", "USABLE", "UNFIT")
    assert ended.code == (found["state"] == "UNFIT")
    assert failed(checks) <= {"timers"}  # the other tests on this machine may keep them from their core
    assert ended.stderr == ""
    for check in checks.values():
        assert list(check) == ["name", "state", "value", "bound", "why", "cure"]
        assert check["state"] in STATES
        assert check["bound"]
        assert check["why"]
        assert check["cure"] if check["state"] in ("warn", "fail") else True
    assert checks["timers"]["value"]  # the active part has measured


def test_problems_come_first_and_have_a_cure_in_their_line(tmp_path: Path) -> None:
    """Who reads it wants to know what to do."""
    spoilt = write_machine(tmp_path / "machine", {"proc/sys/net/core/somaxconn": "16"})
    ended = lens("doctor", "--root", str(spoilt), cwd=tmp_path)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("USABLE: 0 failed, ")
    assert any(line.startswith("  warn  somaxconn: 16 ") and "-> sysctl -w " in line for line in lines)
    assert not any("  ok  " in line for line in lines)
    everything = lens("doctor", "--root", str(spoilt), "--all", cwd=tmp_path)
    assert "  ok    numa_node" in everything.stdout or "  warn  numa_node" in everything.stdout
    assert "a server on this machine refuses" in everything.stdout


def test_a_wrong_governor_below_another_root_is_found_by_the_command(tmp_path: Path) -> None:
    """The files of a machine, copied, are enough to look at it."""
    cores = {
        f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_governor": "powersave"
        for i in range(max(os.sched_getaffinity(0)) + 1)
    }
    ended, checks = doctor("--root", str(write_machine(tmp_path, dict(cores))), cwd=tmp_path)
    assert ended.code == 0
    assert checks["governor"]["state"] == "warn"
    assert "cpupower" in checks["governor"]["cure"]
    assert checks["timers"]["state"] == "unknown"  # of this machine, not of that


def test_the_targets_are_tried_without_a_request_that_costs(tmp_path: Path) -> None:
    """Looking at the machine must not spend tokens."""
    with simulator() as server:
        _, checks = doctor(plan_of(tmp_path / "p.json", f"{server.base_url}/v1"), cwd=tmp_path)
        stats = server.stats()
    assert failed(checks) == set()
    for name in ("dns", "tcp", "tls", "rtt", "keep_alive"):
        assert checks[f"target.t.{name}"]["state"] == "ok", checks[f"target.t.{name}"]
    assert checks["slow_start_after_idle"]["state"] == "ok"  # all targets are on loopback
    assert stats["log_rows"] == 0 or all(row["status"] == 404 for row in server.log())


def test_a_target_that_cannot_be_reached_makes_the_machine_unfit_for_the_plan(tmp_path: Path) -> None:
    """Exit code 1, for a script that starts the run after it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ended, checks = doctor(plan_of(tmp_path / "p.json", f"http://127.0.0.1:{port}/v1"), cwd=tmp_path)
    assert ended.code == 1
    assert ended.summary["state"] == "UNFIT"
    assert checks["target.t.tcp"]["state"] == "fail"
    assert str(port) in checks["target.t.tcp"]["value"]
    assert checks["target.t.keep_alive"]["state"] == "unknown"


@pytest.mark.parametrize(
    "text", ["targets: [", "tragets: []", "targets: [{base_url: 'http://h/v1', model: ''}]\nphases: 3"]
)
def test_a_plan_with_errors_is_refused_before_anything_is_measured(text: str, tmp_path: Path) -> None:
    """Exit code 2 and one line that names the place, as with every command."""
    (tmp_path / "p.yaml").write_text(text)
    ended = lens("doctor", "p.yaml", cwd=tmp_path)
    assert ended.code == 2
    assert ended.stdout == ""
    assert "p.yaml" in ended.stderr or "phases" in ended.stderr


def test_a_server_that_announces_to_keep_a_connection_and_closes_it_is_found(tmp_path: Path) -> None:
    """The next request on such a connection fails or waits for another connect; some servers do this after each reply."""

    def once(sock: socket.socket, number: int) -> None:
        if read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}")

    with scripted(once) as server:
        _, checks = doctor(plan_of(tmp_path / "p.json", server.base_url), cwd=tmp_path)
    found = checks["target.t.keep_alive"]
    assert (found["state"], found["value"]) == ("warn", "announced as kept, and closed after one reply")


def test_a_server_that_never_answers_is_reached_and_its_keep_alive_unknown(tmp_path: Path) -> None:
    """It may wait for a real request: no guess, and no wait beyond the time that is set."""

    def silent(sock: socket.socket, number: int) -> None:
        sock.recv(1)
        while sock.recv(65536):
            pass

    with scripted(silent) as server:
        _, checks = doctor(plan_of(tmp_path / "p.json", server.base_url), cwd=tmp_path)
    assert failed(checks) == set()
    assert checks["target.t.tcp"]["state"] == "ok"
    assert checks["target.t.keep_alive"]["state"] == "unknown"


def test_a_server_with_a_short_backlog_loses_nothing(tmp_path: Path) -> None:
    """It serves one client at a time and lets 5 wait: the doctor must not be what overruns it, nor wait for itself."""

    class Quiet(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        targets = [{"name": f"t{i}", "base_url": url, "model": "m"} for i in range(3)]
        (tmp_path / "p.json").write_text(
            json.dumps({"targets": targets, "phases": [{"duration": "5s", "load": {"concurrency": 1}}]})
        )
        _, checks = doctor("p.json", cwd=tmp_path)
        server.shutdown()
    for name in ("tcp", "loss", "keep_alive"):
        assert {checks[f"target.t{i}.{name}"]["state"] for i in range(3)} == {"ok"}, name


@pytest.mark.slow
def test_few_descriptors_are_found(tmp_path: Path) -> None:
    """Without a plan a warning; with one that needs more, no run is possible."""
    small = ["prlimit", "--nofile=512:512"]
    _, checks = doctor(cwd=tmp_path, wrapper=small)
    assert checks["descriptors"]["state"] == "warn"
    with simulator() as server:
        ended, checks = doctor(
            plan_of(tmp_path / "p.json", f"{server.base_url}/v1", concurrency=4000), cwd=tmp_path, wrapper=small
        )
    assert (ended.code, checks["descriptors"]["state"]) == (1, "fail")


@pytest.mark.slow
def test_a_run_keeps_the_names_of_what_is_not_ok(tmp_path: Path) -> None:
    """Whoever reads a summary a month later knows on what kind of machine it was made."""
    with simulator(ttft_ms=2, itl_ms=1, tokens=3) as server:
        flags = ["--base-url", f"{server.base_url}/v1", "--model", "m", "--requests", "4", "--concurrency", "2"]
        host = measured(*flags, cwd=tmp_path)["run"]["host"]
    assert isinstance(host["doctor"], list)
    assert set(host["doctor"]) <= {rule.name for rule in PASSIVE}
    assert host["host_hash"]
    _, checks = doctor(cwd=tmp_path)
    steady = {
        "governor",
        "energy_preference",
        "turbo",
        "idle_states",
        "clocksource",
        "clock_sync",
        "python",
        "priority",
    }
    assert steady & set(host["doctor"]) == {name for name in steady if checks[name]["state"] != "ok"}


def test_a_ctrl_c_ends_it_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    """It starts a process for each worker's core."""
    process = subprocess.Popen(
        [*LENS, "doctor"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children: list[psutil.Process] = []
    end = monotonic() + 30
    while not children and process.poll() is None and monotonic() < end:
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children()
        sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert children, "it was over before a signal could be sent"
    assert process.returncode == 130, err
    assert (out, "Traceback" in err) == ("", False)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_process_that_uses_a_core_is_found_and_named() -> None:
    """The cure names it. Others may be busy on this machine, too."""
    machine, needs = Machine(), needs_of(None)
    hog = subprocess.Popen([sys.executable, "-c", HOG])
    try:
        psutil.Process(hog.pid).cpu_affinity([needs.worker_cores[0]])
        before = read_counters(machine, needs)
        end = monotonic() + 30
        while monotonic() < end:
            sleep(0.2)
            after = read_counters(machine, needs)
            if any(str(hog.pid) in name for name in busiest(before, after, frozenset(needs.usable_cores))):
                break
        window = window_between(before, after, needs)
    finally:
        hog.kill()
        hog.wait()
    assert any(f"(pid {hog.pid})" in name for name in window.hogs)
    assert window.busy[needs.worker_cores[0]] > 0.1
    assert window.others is not None
    assert window.others > 0.1


def test_a_process_with_a_seccomp_filter_asks_only_what_no_filter_kills_for(tmp_path: Path) -> None:
    """Some filters kill for adjtimex(2), and the checks that only read are part of every run."""
    filtered = [sys.executable, str(Path(support_seccomp.__file__)), str(errno.EPERM)]
    _, checks = doctor(cwd=tmp_path, wrapper=filtered)
    assert checks["clock_sync"]["state"] == "unknown"
    assert checks["segment_stamps"]["state"] == "warn"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.slow
@needs_root
def test_another_user_gets_an_answer_and_its_rights_are_seen(tmp_path: Path) -> None:
    """Without CAP_NET_RAW and CAP_SYS_NICE: what a user of an ordinary machine has."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    tmp_path.chmod(0o755)
    readable = subprocess.run([*user, sys.executable, "-c", "import llm_latency_lens"], capture_output=True, cwd="/")
    if readable.returncode:
        pytest.skip("another user cannot read this checkout")
    ended, checks = doctor(cwd=Path("/"), wrapper=user)
    assert failed(checks) == set(), ended.stderr
    assert checks["segment_stamps"]["state"] == "warn"
    assert "CAP_NET_RAW" in checks["segment_stamps"]["cure"]
    assert checks["priority"]["state"] == "warn"


@pytest.mark.slow
@needs_namespaces
def test_few_local_ports_are_found_in_a_namespace(tmp_path: Path) -> None:
    """net.ipv4.ip_local_port_range belongs to the network namespace."""
    with veth_pair() as (server, client):
        path = "/proc/sys/net/ipv4/ip_local_port_range"
        subprocess.run([*client.wrapper, "sh", "-c", f"echo 50000 50499 > {path}"], check=True)
        plan = plan_of(tmp_path / "p.json", f"http://{server.address}:9/v1", concurrency=2000)
        ended, checks = doctor(plan, cwd=tmp_path, wrapper=client.wrapper)
    assert checks["ports"]["state"] == "fail"
    assert checks["ports"]["value"].startswith("500 free")
    assert checks["target.t.tcp"]["state"] == "fail"  # nobody listens there
    assert ended.code == 1


@pytest.mark.slow
@needs_tun
@pytest.mark.parametrize(("link", "name"), [({"delay_ms": 10.0}, "rtt"), ({"delay_ms": 1.0, "loss": 0.25}, "loss")])
def test_delay_and_loss_of_a_link_are_found(link: dict[str, float], name: str, tmp_path: Path) -> None:
    """The same server, over a bad link: the checks of the target say so, and it is reached all the same."""
    with delay_link(**link) as (there, here):
        with simulator(flags=("--host", there.address), wrapper=there.wrapper) as server:
            plan = plan_of(tmp_path / "p.json", f"http://{there.address}:{server.port}/v1")
            _, checks = doctor(plan, cwd=tmp_path, wrapper=here.wrapper)
    assert checks[f"target.t.{name}"]["state"] == "warn", checks[f"target.t.{name}"]
    assert checks["target.t.tcp"]["state"] == "ok"
    assert failed(checks) == set()


@pytest.mark.slow
@needs_root
def test_a_small_tmpfs_is_found(tmp_path: Path) -> None:
    """/dev/shm of a container is often 64 MB, and may be nearly full."""
    mounted = f'mount -t tmpfs -o size=5m none {SEGMENTS.parent} && exec "$@"'
    wrapper = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs")
    ended, checks = doctor(cwd=tmp_path, wrapper=wrapper)
    assert (checks["tmpfs_room"]["state"], ended.code) == ("fail", 1)
    assert "shm-size" in checks["tmpfs_room"]["cure"]


@contextmanager
def limited_group(quota_us: int) -> Iterator[Path]:
    """A control group with a CPU quota per 100 ms, of version 1 or 2. Skips the test where none can be made."""
    name = f"lens-doctor-{os.getpid()}"
    version_1 = Path("/sys/fs/cgroup/cpu")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs to make a control group: {error}")
    try:
        try:
            if version_1.is_dir():
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} 100000")
        except OSError as error:
            pytest.skip(f"needs the cpu controller: {error}")
        yield group
    finally:
        end = monotonic() + 10
        while group.exists() and monotonic() < end:
            with suppress(OSError):
                group.rmdir()
            sleep(0.05)


@pytest.mark.slow
@needs_root
def test_a_quota_of_a_control_group_is_found(tmp_path: Path) -> None:
    """In a container with half a CPU, no worker can run without standing still."""
    with limited_group(50_000) as group:
        inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        ended, checks = doctor(cwd=tmp_path, wrapper=inside)
    assert (checks["cpu_quota"]["state"], checks["cpu_quota"]["value"]) == ("fail", "0.5 CPUs")
    assert ended.code == 1


THROTTLED: Final = """
import sys, time
from llm_latency_lens.collectors.doctor.machine import Machine
from llm_latency_lens.collectors.doctor.needs import needs_of
from llm_latency_lens.collectors.doctor.window import read_counters, window_between
machine, needs = Machine(), needs_of(None)
before, end = read_counters(machine, needs), time.monotonic() + 30
while time.monotonic() < end:
    window = window_between(before, read_counters(machine, needs), needs)
    if window.throttled:
        break
print(window.throttled, window.periods)
"""


@pytest.mark.slow
@needs_root
def test_a_group_that_is_throttled_is_found() -> None:
    """It uses all of its tenth of a CPU, and the counters of the real group say so."""
    with limited_group(10_000) as group:
        inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        done = subprocess.run([*inside, sys.executable, "-c", THROTTLED], capture_output=True, text=True, timeout=90)
    throttled, periods = map(int, done.stdout.split())
    assert 0 < throttled <= periods
