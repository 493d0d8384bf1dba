from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_latency_lens.collectors.snapshot import ENCODER, Ci95, Reason, Snapshot, Verdict
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import ENCODER as ENCODER_OF_PLANS
from llm_latency_lens.engine.plan.plan import InfluxExport, Secret
from llm_latency_lens.exporters.influxdb import InfluxDB, address_of, lines, summary_lines
from llm_latency_lens.exporters.spool.tail import Pump, Refused, Tail, Unavailable, cursors
from tests.support_databases import Influx, VictoriaMetrics, free_port
from tests.support_runs import START_NS, FakeRun


def export_of(url: str, **options: Any) -> InfluxExport:
    return InfluxExport(url=Secret(url), **options)


def to(database: Influx, **changed: Any) -> InfluxExport:
    options = {"org": database.org, "bucket": database.bucket, "token": Secret(database.token), **changed}
    return export_of(database.url, **options)


@pytest.fixture(scope="module")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    with Influx(tmp_path_factory.mktemp("influx")) as database:
        yield database


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("influxdb://tok@h:1/o/b", {}, ("http://h:1", "o", "b", "tok", True)),
        ("influxdb://h/o/b", {}, ("http://h:8086", "o", "b", "", True)),
        ("influxdb://h:1/b", {}, ("http://h:1", "", "b", "", True)),  # 1.8: no organisations
        ("influxdb://tok@h:1/o/b?tls=1&insecure=1", {}, ("https://h:1", "o", "b", "tok", False)),
        ("influxdbs://h:1/o/b", {"token": Secret("t")}, ("https://h:1", "o", "b", "t", True)),
        ("influxdb://u:p@h:1/b", {}, ("http://h:1", "", "b", "u:p", True)),
        ("influxdb://a%3D%3D@h:1/my%20org/b", {}, ("http://h:1", "my org", "b", "a==", True)),
        ("http://h:1/", {"org": "o", "bucket": "b", "token": Secret("t")}, ("http://h:1", "o", "b", "t", True)),
        ("https://t@h", {"org": "o", "bucket": "b"}, ("https://h", "o", "b", "t", True)),
    ],
)
def test_an_address_reads_as_url_or_as_options(url: str, options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    a = address_of(export_of(url, **options))
    assert (a.url, a.org, a.bucket, a.token.value, a.verify_tls) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("influxdb://h:1/", "influxdb://[TOKEN@]HOST"),
        ("influxdb://h:1/a/b/c", "influxdb://[TOKEN@]HOST"),
        ("influxdb://h:1/o/b?tsl=1", "'tsl'"),
        ("http://h:1", "`bucket` is missing"),
        ("ftp://h:1/b", "'ftp'"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(PlanError) as error:
        address_of(export_of(url))
    assert said in str(error.value)


def test_names_with_separators_and_line_breaks_stay_one_tag() -> None:
    snapshot = next(iter(FakeRun(ticks=1, targets=1).snapshots()))
    snapshot.intervals[0].target = "a b,c=d\ne\\"
    points = list(lines(snapshot, "na me"))
    assert all("\n" not in p for p in points)
    assert r"target=a\ b\,c\=d\ e" in points[0]
    assert r"name=na\ me" in points[0]


def test_what_is_unknown_is_left_out() -> None:
    snapshot = next(iter(FakeRun(ticks=1, targets=1).snapshots()))
    metric = next(p for p in lines(snapshot, "n") if "metric=ttft_ms" in p)
    assert "p99=" in metric
    assert "p99_9=" not in metric  # too few for it
    assert not any("None" in p for p in lines(snapshot, "n"))


def test_a_finished_run_is_one_point_per_metric_and_part_with_its_intervals() -> None:
    """A dashboard of runs needs the bounds beside the percentiles, and none where the sample gives none."""
    run = FakeRun(ticks=3, targets=1)
    list(run.snapshots())
    report = run.report()
    ttft = report.metrics["ttft_ms"]
    ttft.n_eff, ttft.ci95 = 50.5, Ci95(p50=(40.0, 60.5), p99=(95.0, None))
    point = next(p for p in summary_lines(report) if "metric=ttft_ms" in p and "scope=run" in p)
    assert {"n_eff=50.5", "p50_low=40.0", "p50_high=60.5", "p99_low=95.0"} <= set(point.split(" ")[1].split(","))
    assert "p99_high" not in point
    assert "mean_low" not in point
    assert point.endswith(f" {START_NS + 3 * 10**9}")
    assert sum("metric=ttft_ms" in p for p in summary_lines(report)) == 3  # run, phase, target


def deliver(folder: Path, export: InfluxExport) -> Pump:
    tail = Tail(folder / "intervals.jsonl", folder / "cursor.json")
    destination = InfluxDB(export, name="fake")
    pace = {"poll_s": 0.02, "backoff": lambda attempt: 0.02, "give_up_s": 5.0}
    pump = Pump(tail, destination, run_dir=folder, **pace)
    try:
        pump.run()
    finally:
        destination.close()
    return pump


@pytest.mark.slow
def test_what_was_written_is_read_back_equal(influx: Influx, tmp_path: Path) -> None:
    run = FakeRun(ticks=12, targets=2, seed=11)
    report = run.write(tmp_path)
    reported = list(FakeRun(ticks=12, targets=2, seed=11).snapshots())
    pump = deliver(tmp_path, to(influx))
    deliver(tmp_path, to(influx))  # nothing left to say
    assert pump.tail.cursor.delivered == 12
    rows = influx.query(f"SELECT * FROM lens_metric WHERE run='{run.id}' AND metric='ttft_ms' AND target='target-1'")
    assert [row["time"] for row in rows] == [t.wall_time_ns for t in reported]
    for row, tick in zip(rows, reported, strict=True):
        d = tick.intervals[1].metrics["ttft_ms"]
        assert [row[f] for f in ("count", "mean", "p50", "p99", "max")] == [d.count, d.mean, d.p50, d.p99, d.max]
    (summary,) = influx.query(f"SELECT * FROM lens_result WHERE run='{run.id}' AND metric='ttft_ms' AND scope='run'")
    assert (summary["count"], summary["p99"]) == (report.metrics["ttft_ms"].count, report.metrics["ttft_ms"].p99)
    sums = influx.query(f"SELECT sum(ok) AS ok, sum(failed) AS bad FROM lens_requests WHERE run='{run.id}'")[0]
    assert (sums["ok"], sums["bad"]) == (report.requests.ok, sum(report.requests.failed.values()))
    outcomes = influx.query(f"SELECT sum(count) AS n FROM lens_outcome WHERE run='{run.id}' GROUP BY outcome")
    assert {row["outcome"]: row["n"] for row in outcomes} == {"ok": report.requests.ok, **report.requests.failed}
    assert influx.query(f"SELECT last(ok_total) AS n FROM lens_run WHERE run='{run.id}'")[0]["n"] == report.requests.ok


@pytest.mark.slow
def test_a_finished_run_has_its_verdict_its_slos_and_what_a_chart_marks(influx: Influx) -> None:
    """Grafana draws annotations from exactly these fields; a quote in a text must not end it."""
    run = FakeRun(ticks=10, targets=1, seed=99)
    for _ in run.snapshots():
        pass
    report = run.report()
    report.verdict = Verdict(
        state="INVALID", reasons=[Reason("starved", 'no "CPU",\nbut\\more'), Reason("n", "x", note=True)]
    )
    destination = InfluxDB(to(influx), name="fake")
    destination.end(report)
    destination.end(report)
    destination.close()
    where = f"WHERE run='{run.id}'"
    (verdict,) = influx.query(f"SELECT * FROM lens_verdict {where}")
    assert (verdict["state"], verdict["reasons"], verdict["notes"]) == ("INVALID", 1, 1)
    slos = {row["expression"]: (row["state"], row["pass"]) for row in influx.query(f"SELECT * FROM lens_slo {where}")}
    assert slos == {slo.expression: (slo.state, int(slo.state == "PASS")) for slo in report.slo}
    marks = {row["kind"]: row for row in influx.query(f"SELECT * FROM lens_annotation {where} ORDER BY time DESC")}
    assert {*marks} == {"run", "phase", "verdict", "slo"}
    assert (marks["phase"]["title"], marks["phase"]["time"]) == ("phase steady", START_NS)
    assert marks["phase"]["time_end_ms"] == START_NS // 10**6 + 10_000
    assert marks["verdict"]["title"] == "verdict INVALID"
    assert marks["verdict"]["text"] == 'no "CPU", but\\more; x'
    count = influx.query(f"SELECT count(title) FROM lens_annotation {where}")[0]["count"]
    assert count == 3 + sum(slo.state != "PASS" for slo in report.slo)


@pytest.mark.slow
def test_telling_a_run_again_changes_nothing(influx: Influx, tmp_path: Path) -> None:
    run = FakeRun(ticks=6, targets=1, seed=12)
    run.write(tmp_path)
    deliver(tmp_path, to(influx))
    (tmp_path / "cursor.json").unlink()
    pump = deliver(tmp_path, to(influx))
    assert pump.tail.cursor.delivered == 6
    assert influx.query(f"SELECT count(ok) AS n FROM lens_requests WHERE run='{run.id}'")[0]["n"] == 6


@pytest.mark.slow
def test_a_database_away_for_a_while_misses_no_tick_and_gets_none_twice(tmp_path: Path) -> None:
    run = FakeRun(ticks=40, targets=1, seed=13)
    ticks = [ENCODER.encode(t) + b"\n" for t in run.snapshots()]
    with Influx(tmp_path / "db") as database, (tmp_path / "intervals.jsonl").open("wb", buffering=0) as log:
        destination = InfluxDB(to(database), name="fake")
        tail = Tail(tmp_path / "intervals.jsonl", tmp_path / "cursor.json")
        failed, back = threading.Event(), threading.Event()
        notes: list[str] = []

        def note(line: str) -> None:
            notes.append(line)
            (back if "back after" in line else failed).set()

        options = {"poll_s": 0.02, "backoff": lambda attempt: 0.02}
        pump = Pump(tail, destination, run_dir=tmp_path, log=note, **options)
        thread = threading.Thread(target=pump.run, daemon=True)
        thread.start()
        log.write(b"".join(ticks[:10]))
        database.stop()
        log.write(b"".join(ticks[10:30]))
        assert failed.wait(20)
        database.start()
        log.write(b"".join(ticks[30:]))
        assert back.wait(20)
        (tmp_path / "summary.json").write_text("{}")
        thread.join(20)
        assert not thread.is_alive()
        destination.close()
        rows = database.query(f"SELECT tick FROM lens_run WHERE run='{run.id}'")
    assert [row["tick"] for row in rows] == list(range(40))
    assert not any(Influx.token in line for line in notes)
    assert tail.cursor.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token": Secret("wrong-s3cret")}, ["refused the token", "401", "export.influxdb.token"]),
        ({"bucket": "nowhere"}, ["no bucket 'nowhere'", "404", "create it"]),
    ],
)
def test_a_wrong_token_or_bucket_is_a_clear_error(influx: Influx, changed: dict[str, Any], words: list[str]) -> None:
    destination = InfluxDB(to(influx, **changed), name="fake")
    with pytest.raises(Refused) as error:
        destination.check("run")
    destination.close()
    assert all(word in str(error.value) for word in words)
    assert "s3cret" not in str(error.value)


@pytest.mark.slow
def test_the_check_passes_where_all_is_well(influx: Influx) -> None:
    destination = InfluxDB(to(influx), name="fake")
    destination.check("run-checked")
    destination.close()
    assert influx.query("SELECT alive FROM lens_check WHERE run='run-checked'")[0]["alive"] == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_is_unavailable_not_wrong() -> None:
    destination = InfluxDB(export_of(f"influxdb://t@127.0.0.1:{free_port()}/o/b"), name="fake")
    with pytest.raises(Unavailable, match="cannot be reached"):
        destination.check("run")
    destination.close()


@pytest.mark.slow
def test_a_server_that_takes_the_connection_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_latency_lens.exporters.influxdb.TIMEOUT_MS", 200)
    with socket.create_server(("127.0.0.1", 0)) as server:
        destination = InfluxDB(export_of(f"influxdb://t@127.0.0.1:{server.getsockname()[1]}/o/b"), name="fake")
        with pytest.raises(Unavailable):
            destination.check("run")
        destination.close()


@pytest.mark.slow
def test_a_point_the_server_cannot_take_is_rejected_and_the_rest_goes_on(influx: Influx, tmp_path: Path) -> None:
    run = FakeRun(ticks=4, targets=1, seed=14)
    run.write(tmp_path)
    destination = InfluxDB(to(influx), name="fake")
    destination._send(f'lens_run,run={run.id},name=fake tick="text" 1'.encode())  # a field type that conflicts
    destination.close()
    pump = deliver(tmp_path, to(influx))
    assert pump.tail.cursor.rejected + pump.tail.cursor.delivered == 4
    assert pump.tail.pending_bytes() == 0


@pytest.mark.slow
def test_the_exporter_process_killed_in_mid_run_goes_on_where_it_was(influx: Influx, tmp_path: Path) -> None:
    run = FakeRun(ticks=60, targets=1, seed=16)
    ticks = [ENCODER.encode(t) + b"\n" for t in run.snapshots()]
    plan = msgspec.structs.replace(run.manifest().plan, export=(to(influx),))
    body = ENCODER_OF_PLANS.encode(plan)

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llm_latency_lens.cli.processes.export", "--run-dir", str(tmp_path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(len(body).to_bytes(4, "little") + body)
        return process

    def delivered() -> int:
        return sum(cursor.delivered for cursor in cursors(tmp_path).values())

    with (tmp_path / "intervals.jsonl").open("wb", buffering=0) as log:
        log.write(b"".join(ticks[:20]))
        first = started()
        while delivered() < 20:
            assert first.poll() is None
        log.write(b"".join(ticks[20:40]))
        first.send_signal(signal.SIGKILL)
        first.wait()
        log.write(b"".join(ticks[40:]))
    (tmp_path / "summary.json").write_text("{}")
    second = started()
    assert second.wait(30) == 0
    rows = influx.query(f"SELECT tick FROM lens_run WHERE run='{run.id}'")
    assert [row["tick"] for row in rows] == list(range(60))
    assert influx.token not in (tmp_path / ".export-0-influxdb.json").read_text()


@pytest.mark.slow
def test_victoria_metrics_takes_the_same_points(tmp_path: Path) -> None:
    run = FakeRun(ticks=5, targets=2, seed=15)
    run.write(tmp_path / "run")
    reported: list[Snapshot] = list(FakeRun(ticks=5, targets=2, seed=15).snapshots())
    with VictoriaMetrics(tmp_path / "vm") as database:
        deliver(tmp_path / "run", export_of(f"influxdb://127.0.0.1:{database.port}/lens"))
        series = database.series("lens_metric_p50")
    mine = next(s for s in series if s["metric"]["metric"] == "e2e_ms" and s["metric"]["target"] == "target-0")
    assert mine["timestamps"] == [t.wall_time_ns // 1_000_000 for t in reported]
    assert mine["values"] == pytest.approx([t.intervals[0].metrics["e2e_ms"].p50 for t in reported])
