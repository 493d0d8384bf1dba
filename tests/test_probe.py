"""`lens probe` as a service manager sees it: real processes, a real notify socket, the simulator's log as the truth."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import threading
from functools import partial
from pathlib import Path
from time import monotonic_ns

import psutil
import pytest

from llm_latency_lens.cli.probe.probe_run import Progress
from llm_latency_lens.engine.records.layout import Counter, Geometry
from llm_latency_lens.engine.records.writer import SegmentWriter
from llm_latency_lens.engine.runs.notify import Notifier
from tests.support_collector import SECOND, manifest
from tests.support_collector import plan as small_plan
from tests.support_lens import accounts, lens
from tests.support_probe import managed
from tests.support_simulator import FAST, simulator


def write_plan(folder: Path, url: str, probe: str, *, more: str = "") -> Path:
    path = folder / "plan.yaml"
    price = "price: {input: 1, output: 2}"
    path.write_text(
        "name: watch\n"
        f"targets:\n  - {{name: a, base_url: '{url}/v1', model: m, {price}}}\n"
        f"  - {{name: b, base_url: '{url}/v1', model: m, {price}}}\n"
        f"probe: {probe}\nlimits: {{drain: 3s, timeout: 20s}}\n{more}"
    )
    return path


@pytest.mark.slow
def test_it_is_ready_after_the_first_success_reloads_and_stops_with_nothing_lost(tmp_path: Path) -> None:
    """The life of the service as systemd sees it, with the handovers checked against the server's log."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 500ms, jitter: 100ms}")
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            assert sim.stats()["requests"] >= 1
            manager.until("WATCHDOG=1")

            plan.write_text(plan.read_text() + "nonsense: 1\n")
            manager.process.send_signal(signal.SIGHUP)
            manager.until("RELOADING=1")
            manager.until("READY=1")
            assert "the new plan is refused, the old one goes on: unknown key 'nonsense'" in manager.journal()
            assert manager.said("STATUS=reload refused")
            before = sim.stats()["requests"]
            manager.wait_for(lambda: sim.stats()["requests"] > before + 2)

            write_plan(tmp_path, sim.base_url, "{every: 300ms}", more="workload: other words\n")
            manager.process.send_signal(signal.SIGHUP)
            manager.until("RELOADING=1")
            manager.until("READY=1")
            manager.wait_for(lambda: len(manager.runs()) > 1 and sim.stats()["requests"] > before + 30)

            assert manager.stop() == 0
            manager.wait_for(lambda: manager.said("STOPPING=1"))
        reports = manager.reports()
        assert len(reports) == 2
        for report in reports:
            accounts(report["requests"])
        assert sum(report["requests"]["sent"] for report in reports) == len(sim.log())
        assert sum(report["requests"]["ok"] for report in reports) == len(sim.log())

    history = lens("report", str(manager.state), "--to", "json", cwd=tmp_path).summary
    assert history["requests"]["ok"] == sum(report["requests"]["ok"] for report in reports)
    assert history["metrics"]["ttft_ms"]["count"] == history["requests"]["ok"]
    assert {target["name"] for target in history["targets"]} == {"a", "b"}
    merged = max(report["metrics"]["ttft_ms"]["max"] for report in reports)
    assert history["metrics"]["ttft_ms"]["max"] == pytest.approx(merged, rel=0.002)
    moment = reports[0]["run"]["started_at"]
    assert "no ticks in that span of time" in lens("report", str(manager.state), "--until", moment, cwd=tmp_path).stderr


@pytest.mark.slow
def test_a_target_that_is_down_delays_readiness_and_nothing_else(tmp_path: Path) -> None:
    """The watchdog must not restart a probe because its target is down: that is what it measures."""
    with simulator(**FAST) as sim:
        url, port = sim.base_url, sim.port
    plan = write_plan(tmp_path, url, "{every: 400ms}")
    with managed(tmp_path, plan) as manager:
        manager.wait_for(lambda: manager.said("failed") and manager.said("WATCHDOG=1"))
        assert not manager.said("READY=1")
        with simulator(flags=("--port", str(port)), **FAST):
            manager.until("READY=1")
            assert manager.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"), [("engine.worker", "worker-0"), ("cli.processes.collect", "the collector")]
)
def test_a_hung_process_lets_the_watchdog_bark(module: str, name: str, tmp_path: Path) -> None:
    """A probe that measures nothing and looks healthy is worse than one that is restarted."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 500ms}")
        with managed(tmp_path, plan, watchdog_s=6.0) as manager:
            manager.until("READY=1")
            manager.until("WATCHDOG=1")
            hung = manager.of_role(module)[0]
            complaint = f"{name} makes no progress"
            before = manager.journal().count(complaint)  # a busy machine may have stalled it for a moment
            hung.suspend()
            manager.wait_for(lambda: manager.journal().count(complaint) > before)
            while manager.listen(0.5):
                pass  # what was said before
            assert manager.listen(3.0) == "" or "WATCHDOG=1" not in manager.heard[-1][1]
            hung.resume()
            manager.until("WATCHDOG=1")
            assert manager.stop() == 0


@pytest.mark.slow
def test_a_killed_probe_goes_on_where_it_was(tmp_path: Path) -> None:
    """As after the watchdog's SIGKILL of the complete unit: totals, spend and alerts are there again."""
    with simulator(**FAST) as sim:
        alerts = "[{name: any, when: 'e2e_ms.p50 > 0', over: 60s}]"
        plan = write_plan(tmp_path, sim.base_url, f"{{every: 300ms, daily_budget_usd: 50, alerts: {alerts}}}")
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            manager.wait_for(lambda: "alert any is firing" in manager.journal())
            for each in [*psutil.Process(manager.process.pid).children(recursive=True), manager.process]:
                each.kill()
            manager.process.wait()
        sent = len(sim.log())
        with managed(tmp_path, plan) as again:
            again.until("READY=1")
            assert again.stop() == 0
        first, *rest = again.reports()
        accounts(first["requests"])
        assert "recovered" in again.journal()
        assert first["requests"]["sent"] >= sent - 1  # at most the record in the making
        assert sum(each["requests"]["sent"] for each in [first, *rest]) >= len(sim.log()) - 1
        assert again.journal().count("alert any is firing") == 1


@pytest.mark.slow
def test_a_spent_budget_pauses_until_midnight_also_over_a_restart(tmp_path: Path) -> None:
    """A restart must not be a way around the budget."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 200ms, daily_budget_usd: 0.0008}")
        with managed(tmp_path, plan) as manager:
            manager.wait_for(lambda: "budget of 0.0008 USD is spent" in manager.journal())
            assert manager.stop() == 0
        spent = sum(report["cost"]["usd"] or 0 for report in manager.reports())
        assert 0 < spent <= 0.0008
        sent = len(sim.log())
        with managed(tmp_path, plan) as again:
            again.until("READY=1")  # nothing to probe is in order
            again.until("WATCHDOG=1")
            assert again.stop() == 0
        assert sum(report["cost"]["usd"] or 0 for report in again.reports()) <= 0.0008
        assert len(sim.log()) - sent <= 1


class Hook(http.server.BaseHTTPRequestHandler):
    heard: list[dict[str, object]]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.slow
def test_an_alert_reaches_the_webhook_and_is_resolved(tmp_path: Path) -> None:
    """Each change is sent once, with the values it was judged by."""
    Hook.heard = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with simulator(**FAST) as sim:
            hook = f"webhook: 'http://127.0.0.1:{server.server_port}/T0K3N'"
            rule = "{name: down, when: 'error_rate > 0.5', over: 2s, target: a}"
            plan = write_plan(tmp_path, sim.base_url, f"{{every: 250ms, {hook}, alerts: [{rule}]}}")
            port = sim.port
            with managed(tmp_path, plan) as manager:
                manager.until("READY=1")
                sim.process.kill()
                sim.process.wait()
                manager.wait_for(lambda: Hook.heard)
                with simulator(flags=("--port", str(port)), **FAST):
                    manager.wait_for(lambda: len(Hook.heard) > 1)
                    assert manager.stop() == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [each["state"] for each in Hook.heard] == ["firing", "resolved"]
    assert Hook.heard[0]["target"] == "a"
    assert "T0K3N" not in manager.journal()
    assert "<4>alert down is firing" in manager.journal()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("{every: 1s, jitter: 2s}", "jitter must not be longer than every"),
        ("{quiet_hours: '25:00-26:00'}", "quiet_hours must be two different times of the day"),
        ("{rotate: 1s}", "rotate must be >= 10s"),
        ("{alerts: [{when: 'ttft_ms.p42 > 1'}]}", "alert 'ttft_ms.p42 > 1': there is no 'p42'"),
        ("{alerts: [{name: x}]}", "needs `when`"),
        ("{alerts: [{when: 'goodput_share < 1'}]}", "cannot be judged over a window"),
        ("{alerts: [{when: 'error_rate > 1', target: aa}]}", "target is none of the plan's (did you mean 'a'?)"),
        (
            "{alerts: [{when: 'error_rate > 1', webhook: 'nowhere/T0K3N'}]}",
            "webhook must be an http:// or https:// URL",
        ),
        ("{evry: 1s}", "unknown key 'evry' (probe.evry, plan.yaml line 5); did you mean 'every'?"),
    ],
)
def test_a_wrong_probe_section_is_one_line(probe: str, message: str, tmp_path: Path) -> None:
    """A service's error is read in the journal: one line, without secrets."""
    plan = write_plan(tmp_path, "http://127.0.0.1:9", probe)
    ended = lens("probe", str(plan), "--state-dir", "state", cwd=tmp_path)
    assert ended.code == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "T0K3N" not in ended.stderr


def test_a_timetable_and_a_load_exclude_each_other(tmp_path: Path) -> None:
    """One of the two would be ignored silently."""
    plan = write_plan(tmp_path, "http://127.0.0.1:9", "{every: 1s}", more="load: {rate: 1}\n")
    assert "a probe has a timetable or a load" in lens("probe", str(plan), cwd=tmp_path).stderr


@pytest.mark.slow
def test_two_probes_do_not_share_a_state_directory(tmp_path: Path) -> None:
    """Each would recover and remove the other's runs."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 1s}")
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            second = lens("probe", str(plan), "--state-dir", str(manager.state), cwd=tmp_path)
            assert second.code == 1
            assert "another probe works in" in second.stderr
            assert manager.stop() == 0


def test_without_a_service_manager_nothing_is_sent() -> None:
    """Started by hand a probe has nobody to notify."""
    notifier = Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"})
    notifier.ready()
    assert notifier.watchdog_ns == 0  # meant for another process


@pytest.mark.slow
def test_no_wrong_plan_replaces_a_running_one(tmp_path: Path) -> None:
    """A typo that some reader does not expect must not end a probe of months: dates, numbers and users of no kind."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 500ms}")
        good = plan.read_text()
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            for number, wrong in enumerate(WRONG, 1):
                plan.write_text(good + wrong)
                manager.process.send_signal(signal.SIGHUP)
                manager.wait_for(
                    lambda number=number: (
                        manager.journal().count("the new plan is refused, the old one goes on") == number
                    )
                )
            before = sim.stats()["requests"]
            manager.wait_for(lambda: sim.stats()["requests"] > before + 2)
            assert "Traceback" not in manager.journal()
            assert manager.stop() == 0


WRONG = [
    "started: 2026-99-99\n",
    "seed: 0b_\n",
    "export: {prometheus: {url: 5}}\n",
    "\0",
    "[" * 5000,
]


@pytest.mark.slow
def test_a_plan_with_its_own_page_can_be_reloaded(tmp_path: Path) -> None:
    """The page of the running plan holds the port: a check that listens there refused every reload of a good plan."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with simulator(**FAST) as sim:
        page = f"export: {{prometheus: {{url: 'prometheus://127.0.0.1:{port}'}}}}\n"
        plan = write_plan(tmp_path, sim.base_url, "{every: 400ms}", more=page)
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            manager.wait_for(lambda: manager.of_role("cli.processes.export") and _answers(port))
            write_plan(tmp_path, sim.base_url, "{every: 300ms}", more=page)
            manager.process.send_signal(signal.SIGHUP)
            manager.wait_for(lambda: "takes over" in manager.journal() or "refused" in manager.journal())
            assert "refused" not in manager.journal()
            assert manager.stop() == 0


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_slots_of_the_next_run_are_not_planned_in_this_one(tmp_path: Path) -> None:
    """A SIGTERM read "1,519 planned = 26 sent + 1,493 not sent", and a reload planned the same slots twice."""
    with simulator(**FAST) as sim:
        plan = write_plan(tmp_path, sim.base_url, "{every: 200ms}")
        with managed(tmp_path, plan) as manager:
            manager.until("READY=1")
            manager.process.send_signal(signal.SIGHUP)
            manager.wait_for(lambda: len(manager.runs()) > 1 and (manager.runs()[0] / "summary.json").exists())
            assert manager.stop() == 0
        for report in manager.reports():
            accounts(report["requests"])
            assert "stopped" not in report["requests"]["unsent"]
            assert report["requests"]["planned"] < 500


def test_a_ring_without_a_heartbeat_yet_is_no_hung_worker(tmp_path: Path) -> None:
    """At each rotation the new run's worker was called hung: its ring is there 100 ms before its first heartbeat."""
    manifest(str(tmp_path), small_plan()).write(tmp_path)
    progress = Progress(tmp_path)
    now = monotonic_ns()
    hangs = partial(progress.hangs, limit_ns=2 * SECOND, tick_ns=60 * SECOND, since_start_ns=0)
    assert hangs(now) == ""  # being replaced: there is no ring
    writer = SegmentWriter.create(
        tmp_path / "worker-0.0.ring", Geometry(4096, 1 << 15, 256, 16, 1, 1), worker=0, incarnation=0
    )
    assert writer.counters[Counter.HEARTBEAT_NS] == 0
    assert hangs(now + SECOND) == ""
    assert hangs(now + 4 * SECOND) == "worker-0"  # but it has no longer than any other
    writer.counters[Counter.HEARTBEAT_NS] = now + 4 * SECOND
    assert hangs(now + 5 * SECOND) == ""
    assert hangs(now + 7 * SECOND) == "worker-0"
