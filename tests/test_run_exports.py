"""`lens run --export` to real servers, absent ones and hung ones: every tick exactly once, and the run does not mind."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest
from hdrh.histogram import HdrHistogram

from llm_latency_lens.engine.metrics import SCALES
from llm_latency_lens.exporters.hdr import read as hdrread
from tests.support_databases import Influx, VictoriaMetrics, free_port
from tests.support_lens import LENS, accounts, environment, finish, lens, manifest_of, running
from tests.support_simulator import FAST, Simulator, simulator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(**FAST) as running_simulator:
        yield running_simulator


def target(sim: Simulator) -> tuple[str, ...]:
    return ("--base-url", f"{sim.base_url}/v1", "--model", "m")


def ticks_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/latest/intervals.jsonl").read_text().splitlines()]


def test_a_database_can_have_the_histograms_too(sim: Simulator, tmp_path: Path) -> None:
    """The payloads of all ticks together are the run's own distribution, count for count."""
    with Influx(tmp_path / "db") as database:
        (tmp_path / "plan.yaml").write_text(
            f"target: {{base_url: '{sim.base_url}/v1', model: m}}\n"
            "load: {rate: 200}\nduration: 3s\n"
            f"export: {{influxdb: {{url: '{database.url}', org: {database.org}, bucket: {database.bucket}, "
            f"token: {database.token}, hdr: true, interval: 2s}}}}\n"
        )
        summary = lens("run", "plan.yaml", "--json", cwd=tmp_path).summary
        rows = database.query("SELECT hdr, count FROM lens_metric WHERE metric='e2e_ms'")
    total = HdrHistogram(hdrread.LOWEST, hdrread.HIGHEST, 3)
    for row in rows:
        assert total.decode_and_add(row["hdr"].encode()) is None
    reported = summary["metrics"]["e2e_ms"]
    assert total.get_total_count() == sum(row["count"] for row in rows) == reported["count"] == 600
    for level in (50, 99):
        value = total.get_value_at_percentile(level) / SCALES["e2e_ms"]
        assert value == pytest.approx(reported[f"p{level}"], rel=1e-3)


def test_a_database_that_goes_and_comes_back_has_every_tick_once(sim: Simulator, tmp_path: Path) -> None:
    """And the exporter's SIGKILL in between changes nothing either."""
    with Influx(tmp_path / "db") as database:
        url = f"influxdb://{Influx.token}@127.0.0.1:{database.port}/{Influx.org}/{Influx.bucket}"
        arguments = (*target(sim), "--rate", "100", "--duration", "9s", "--export", url)
        with running(*arguments, cwd=tmp_path) as process:
            manifest_of(tmp_path)
            sleep(2)
            database.stop()
            sleep(2)
            exporters = [
                each
                for each in psutil.Process(process.pid).children()
                if any("cli.processes.export" in word for word in each.cmdline())
            ]
            assert len(exporters) == 1
            exporters[0].kill()
            sleep(1)
            database.start()
            ended = finish(process)
        assert ended.code == 0, ended.stderr
        summary = ended.summary
        run = summary["run"]["id"]
        reported = ticks_of(tmp_path)
        rows = database.query(f"SELECT tick, ok_total FROM lens_run WHERE run='{run}'")
        assert [row["tick"] for row in rows] == [tick["tick"] for tick in reported]
        assert rows[-1]["ok_total"] == summary["requests"]["ok"] == 900
        outcomes = database.query(f"SELECT sum(count) AS n FROM lens_outcome WHERE run='{run}' GROUP BY outcome")
        assert {row["outcome"]: row["n"] for row in outcomes} == {"ok": 900}
        series = database.query(f"SELECT * FROM lens_metric WHERE run='{run}' AND metric='ttft_ms'")
        busy = [part for tick in reported for part in tick["intervals"] if part["metrics"]["ttft_ms"]["count"]]
        assert [row["p99"] for row in series] == [part["metrics"]["ttft_ms"]["p99"] for part in busy]
        assert sum(row["count"] for row in series) == summary["metrics"]["ttft_ms"]["count"]
    secrets = [
        path for path in (tmp_path / "runs").rglob("*") if path.is_file() and Influx.token in path.read_text("latin-1")
    ]
    assert secrets == []
    assert Influx.token not in ended.stderr


def test_an_old_run_is_told_to_another_database(sim: Simulator, tmp_path: Path) -> None:
    """A run's ticks can be sent anywhere later, as if it had been exported there at once."""
    assert lens("run", "--quiet", *target(sim), "--requests", "50", cwd=tmp_path).code == 0
    with VictoriaMetrics(tmp_path / "vm") as database:
        url = f"influxdb://any@127.0.0.1:{database.port}/org/bucket"
        ended = lens("report", "runs/latest", "--to", url, cwd=tmp_path)
        assert ended.code == 0, ended.stderr
        end = monotonic() + 20
        while not (found := database.series("lens_run_ok_total")):
            assert monotonic() < end
            sleep(0.2)
    assert [each["values"][-1] for each in found] == [50]


def test_a_page_is_scraped_while_the_run_goes_and_does_not_hold_its_end(sim: Simulator, tmp_path: Path) -> None:
    """A scraper asks every 15 s: the last tick must still be there for it, and the run must end all the same."""
    port = free_port()
    arguments = (*target(sim), "--rate", "50", "--duration", "4s", "--export", f"prometheus://127.0.0.1:{port}")
    with running(*arguments, cwd=tmp_path) as process:
        end = monotonic() + 20
        page = ""
        while 'outcome="ok"' not in page:
            assert monotonic() < end, page
            sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as reply:
                    page = reply.read().decode()
            except OSError:
                continue
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as reply:
            assert json.load(reply)["status"] == "ok"
        while process.poll() is None:  # the page waits for the last scrape; here it comes
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as reply:
                    page = reply.read().decode()
            except OSError:
                sleep(0.05)
            sleep(0.1)
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert ended.summary["requests"]["ok"] == 200
    counted = [float(line.split()[-1]) for line in page.splitlines() if 'outcome="ok"' in line and "_total{" in line]
    assert counted == [200]
    intervals = [interval for tick in ticks_of(tmp_path) for interval in tick["intervals"]]
    native = [count for interval in intervals for count in interval["native"].get("e2e_ms", {}).values()]
    assert sum(native) == 200, "the page's native histograms come with the ticks"


def test_a_destination_that_hangs_and_a_terminal_that_is_not_read_change_nothing(
    sim: Simulator, tmp_path: Path
) -> None:
    """All the run's own files and counts are whole; the results are there before anybody waits for the export."""
    hole = socket.create_server(("127.0.0.1", 0), backlog=8)  # takes connections, answers nothing
    url = f"influxdb://token@127.0.0.1:{hole.getsockname()[1]}/org/bucket"
    command = [*LENS, "run", *target(sim), "--rate", "100", "--duration", "4s", "--export", url]
    screen, terminal = pty.openpty()  # nobody reads it: it fills and blocks
    try:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=terminal)
        try:
            summary = tmp_path / "runs/latest/summary.json"
            end = monotonic() + 40
            while not summary.exists() or (tmp_path / "runs/latest/.live").is_symlink():
                assert monotonic() < end
                assert process.poll() is None
                sleep(0.1)
            report = json.loads(summary.read_bytes())
        finally:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()
            os.close(screen)
    finally:
        os.close(terminal)
        hole.close()
    accounts(report["requests"])
    assert report["requests"]["ok"] == 400
    assert report["client"]["ring_drops"] == 0
    assert ticks_of(tmp_path)[-1]["ok_total"] == 400


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("influxdb://token@127.0.0.1:1", "[ORG/]BUCKET"),
        ("nowhere://127.0.0.1:1", "export must begin with influxdb://"),
    ],
)
def test_a_wrong_export_is_an_error_before_anything_is_sent(
    url: str, words: str, sim: Simulator, tmp_path: Path
) -> None:
    """Found out at the end it would have cost the whole run's money."""
    before = sim.stats()["requests"]
    ended = lens("run", *target(sim), "--requests", "5", "--export", url, cwd=tmp_path)
    assert ended.code == 2
    assert words in ended.stderr
    assert sim.stats()["requests"] == before


def test_a_wrong_token_is_told_at_the_start(sim: Simulator, tmp_path: Path) -> None:
    """The error names what was refused and never shows the token."""
    with Influx(tmp_path / "db") as database:
        url = f"influxdb://wr0ng-token@127.0.0.1:{database.port}/{Influx.org}/{Influx.bucket}"
        ended = lens("run", *target(sim), "--requests", "5", "--export", url, cwd=tmp_path)
    assert ended.code in (1, 2)
    assert "refused the token" in ended.stderr
    assert "wr0ng-token" not in ended.stderr


def exporters_of(pid: int) -> list[psutil.Process]:
    """The exporter processes of a run that are alive."""
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # a zombie, or gone since
            if any("processes.export" in word for word in each.cmdline()):
                found.append(each)
    return found


def test_a_killed_exporter_is_started_again_and_counted(sim: Simulator, tmp_path: Path) -> None:
    """A soak run of days lost its series at the first OOM kill of the exporter, and nothing said so."""
    url = f"prometheus://127.0.0.1:{free_port()}"
    arguments = (*target(sim), "--rate", "20", "--duration", "24h", "--export", url)
    with running(*arguments, cwd=tmp_path) as process:
        manifest_of(tmp_path)
        end = monotonic() + 40
        while not (before := exporters_of(process.pid)):
            assert monotonic() < end
            sleep(0.05)
        before[0].kill()
        while not [each for each in exporters_of(process.pid) if each.pid != before[0].pid]:
            assert monotonic() < end
            sleep(0.05)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 130, ended.stderr
    assert ended.summary["client"]["exporter_restarts"] == 1
    log = [json.loads(line) for line in (tmp_path / "runs/latest/log.jsonl").read_text().splitlines()]
    assert [line["code"] for line in log if line["event"] == "exporter_died"] == [-9]


def test_an_exporter_does_not_outlive_a_killed_run(sim: Simulator, tmp_path: Path) -> None:
    """It holds all keys and a port: an ordinary one stayed for 50 s, one whose run died in its first 150 ms for ever."""
    for moment in ("starting", "running"):
        cwd = tmp_path / moment
        cwd.mkdir()
        url = f"prometheus://127.0.0.1:{free_port()}"
        arguments = (*target(sim), "--rate", "20", "--duration", "24h", "--export", url)
        with running(*arguments, cwd=cwd) as process:
            end = monotonic() + 40
            while not (found := exporters_of(process.pid)):
                assert monotonic() < end
                sleep(0.002)
            if moment == "running":
                manifest_of(cwd)
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(found, timeout=10)
        assert not alive
        lens("recover", "runs/latest", cwd=cwd)
        for left in (cwd / "runs").glob("*/.live"):
            lens("recover", "--remove", left.parent.name, cwd=cwd)


def test_a_dead_otlp_endpoint_is_named_at_once(sim: Simulator, tmp_path: Path) -> None:
    """It was 60 s of silence, then exit code 2 as if the user had mistyped something."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otlp extra is not installed")
    assert lens("run", *target(sim), "--requests", "5", "--quiet", cwd=tmp_path).code == 0
    began = monotonic()
    ended = lens("report", "runs/latest", "--to", f"otlp://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert ended.code == 1
    assert "cannot be reached: Connection refused" in ended.stderr
    assert monotonic() - began < 20
