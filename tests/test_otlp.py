from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from llm_latency_lens.collectors.snapshot import Ci95
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import OtlpExport, Secret
from llm_latency_lens.exporters.otlp import Otlp, endpoint_of
from llm_latency_lens.exporters.spool.tail import Unavailable
from tests.support_databases import Daemon, answers, free_port
from tests.support_runs import FakeRun

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otlp extra is not installed")


def export_of(url: str) -> OtlpExport:
    return OtlpExport(url=Secret(url))


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("otlp://h", "http://h:4318/v1/metrics"),
        ("otlp://h:99", "http://h:99/v1/metrics"),
        ("otlps://h:99/custom", "https://h:99/custom"),
        ("http://h:1/v1/metrics", "http://h:1/v1/metrics"),
    ],
)
def test_an_endpoint_gets_the_standard_port_and_path(url: str, endpoint: str) -> None:
    assert endpoint_of(export_of(url)) == endpoint


def test_a_url_of_another_kind_is_an_error() -> None:
    with pytest.raises(PlanError, match="must read"):
        endpoint_of(export_of("kafka://h"))


@pytest.mark.slow
def test_a_collector_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_latency_lens.exporters.otlp.TIMEOUT_S", 1)
    destination = Otlp(export_of(f"otlp://127.0.0.1:{free_port()}"), name="fake", models={})
    with pytest.raises(Unavailable):
        destination.write(list(FakeRun(ticks=1, targets=1).snapshots()))
    destination.close()


@pytest.mark.slow
def test_a_real_collector_decodes_what_was_measured(tmp_path: Path) -> None:
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        pytest.skip("rotel, a development dependency, is not installed")
    rotel = str(Path(found.origin).with_name("rotel-agent"))
    run = FakeRun(ticks=3, targets=1)
    http, grpc, log = free_port(), free_port(), tmp_path / "rotel.log"
    command = [rotel, "start", "--debug-log", "metrics", "--debug-log-verbosity", "detailed", "--exporter", "blackhole"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
    collector = Daemon(command, log, lambda: answers(f"http://127.0.0.1:{http}/"))
    try:
        destination = Otlp(export_of(f"otlp://127.0.0.1:{http}"), name="fake", models={"target-0": ("openai", "llama")})
        destination.write(list(run.snapshots()))
        report = run.report()
        report.metrics["ttft_ms"].ci95 = Ci95(p99=(95.5, None))
        destination.end(report)
        destination.close()
    finally:
        collector.stop()
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    summary = text.split("Name: lens.result.ttft")[1].split("Name: ")[0]
    assert "statistic: Str(p99)" in summary
    assert "Value: 0.0955" in summary
    assert "bound: Str(high)" not in summary
    assert "gen_ai.server" not in text, "a client measured it"
    verdict = text.split("Name: lens.verdict\n")[1].split("Name: ")[0]
    assert "state: Str(VALID)" in verdict
    assert "expression: Str(error_rate <= 0.01)" in text.split("Name: lens.slo\n")[1]
    usage = text.split("Name: gen_ai.client.token.usage\n")[1].split("Name: ")[0]
    assert {int(float(n)) for n in re.findall(r"^Sum: (\S+)", usage, re.M)} >= {
        120 * tick.intervals[0].requests.ok for tick in run.snapshots()
    }
    drops = text.split("Name: lens.client.ring_drops\n")[1].split("Name: ")[0]
    assert "IsMonotonic: true" in drops
    assert "AGGREGATION_TEMPORALITY_CUMULATIVE" in drops
    for name in ("lens.rtt", "lens.server_ttft", "lens.provider_time", "lens.tokens_per_event"):
        assert f"Name: {name}\n" in text
    d = report.targets[0].metrics["ttft_ms"]
    reported = text.split("Name: gen_ai.client.operation.time_to_first_chunk")
    assert len(reported) == 2  # all ticks of a push are points of one metric
    mine = reported[1].split("Name: ")[0]
    assert "gen_ai.request.model: Str(llama)" in mine
    assert sum(int(n) for n in re.findall(r"^Count: (\d+)", mine, re.M)) == d.count
    assert sum(float(n) for n in re.findall(r"^Sum: (\S+)", mine, re.M)) == pytest.approx(d.count * (d.mean or 0) / 1e3)
