from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_latency_lens.collectors.snapshot import Ci95, Report
from llm_latency_lens.engine.dialects.table import DIALECTS
from llm_latency_lens.engine.errors import OutputError, PlanError
from llm_latency_lens.engine.metrics import METRICS, Metric
from llm_latency_lens.engine.plan.plan import ENCODER, PrometheusExport, Secret
from llm_latency_lens.exporters.estimates import BaseUnit
from llm_latency_lens.exporters.genai import genai_of
from llm_latency_lens.exporters.prometheus import Prometheus, address_of
from llm_latency_lens.exporters.prometheus_page import Page
from llm_latency_lens.exporters.prometheus_protobuf import is_preferred
from tests.support_databases import PrometheusServer, answers, free_port, unpacked
from tests.support_runs import FakeRun

MODELS = {"target-0": ("openai", "llama"), "target-1": ("openai", 'odd "name"\\')}


def export_of(url: str) -> PrometheusExport:
    return PrometheusExport(url=Secret(url))


def page_of(run: FakeRun) -> str:
    totals = Page(MODELS, "fake")
    for tick in run.snapshots():
        totals.add(tick)
    return totals.text()


def get(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode(), reply.headers["Content-Type"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("prometheus://:9500", ("127.0.0.1", 9500)),
        ("prometheus://", ("127.0.0.1", 9464)),
        ("prometheus://0.0.0.0:1", ("0.0.0.0", 1)),
        ("prometheus://[::1]:1", ("::1", 1)),
    ],
)
def test_the_page_is_on_loopback_unless_told_otherwise(url: str, expected: tuple[str, int]) -> None:
    assert address_of(export_of(url)) == expected


def test_a_wrong_port_is_named() -> None:
    with pytest.raises(PlanError, match="no port"):
        address_of(export_of("prometheus://:http"))


def test_the_pages_sums_are_the_runs() -> None:
    run = FakeRun(ticks=12, targets=2)
    families = {f.name: f for f in text_string_to_metric_families(page_of(run))}
    report = run.report()
    outcomes = {"ok": 0.0}
    for sample in families["lens_requests"].samples:
        outcomes[sample.labels["outcome"]] = outcomes.get(sample.labels["outcome"], 0) + sample.value
    assert outcomes == {"ok": report.requests.ok, "cancelled": 0, **report.requests.failed}
    for target in report.targets:
        for metric, family in (
            ("ttft_ms", "gen_ai_client_operation_time_to_first_chunk_seconds"),
            ("e2e_ms", "gen_ai_client_operation_duration_seconds"),
            ("itl_ms", "gen_ai_client_operation_time_per_output_chunk_seconds"),
        ):
            mine = [s for s in families[family].samples if s.labels["target"] == target.name]
            d = target.metrics[metric]
            values = {s.name: s.value for s in mine if not s.name.endswith("_bucket")}
            assert values[f"{family}_count"] == d.count
            assert values[f"{family}_sum"] == pytest.approx(d.count * (d.mean or 0) / 1e3)
            buckets = [s.value for s in mine if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert buckets[-1] == d.count


def test_quotes_and_backslashes_in_a_model_name_survive() -> None:
    families = text_string_to_metric_families(page_of(FakeRun(ticks=2, targets=2)))
    models = {s.labels.get("gen_ai_request_model") for f in families for s in f.samples}
    assert 'odd "name"\\' in models


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_has_a_base_unit(metric: Metric) -> None:
    """A metric of a new unit once took the complete page down, after the run and only then."""
    unit = BaseUnit.of(metric)
    assert f"{unit.name}_" in f"{metric.name}_"


def summarised() -> tuple[Page, Report]:
    run = FakeRun(ticks=5, targets=2)
    page = Page(MODELS, "fake")
    for tick in run.snapshots():
        page.add(tick)
    report = run.report()
    ttft = report.metrics["ttft_ms"]
    ttft.n_eff, ttft.ci95 = 190.5, Ci95(p50=(40.0, 60.0), p99=(95.0, None))
    page.summary = report
    return page, report


def test_a_finished_run_has_its_intervals_and_no_bound_that_it_does_not_know() -> None:
    """A bound written as 0 would be drawn as one."""
    page, report = summarised()
    families = {f.name: f for f in text_string_to_metric_families(page.text())}
    found = {
        (s.labels["statistic"], s.labels["bound"]): s.value
        for s in families["lens_result_ttft_seconds"].samples
        if s.labels["scope"] == "run"
    }
    p99 = report.metrics["ttft_ms"].p99
    assert p99 is not None
    assert found["0.5", "low"] == pytest.approx(0.04)
    assert found["0.5", "high"] == pytest.approx(0.06)
    assert (found["0.99", "value"], found["0.99", "low"]) == pytest.approx((p99 / 1e3, 0.095))
    assert ("0.99", "high") not in found
    n_eff = [s for s in families["lens_result_n_eff"].samples if s.labels["scope"] == "run"]
    assert [(s.labels["metric"], s.value) for s in n_eff] == [("ttft_ms", 190.5)]
    scopes = {(s.labels["scope"], s.labels["target"]) for s in families["lens_result_values"].samples}
    assert {("run", ""), ("target", "target-0"), ("target", "target-1"), ("phase", "")} <= scopes


@pytest.mark.slow
def test_promtool_finds_nothing_to_complain_about() -> None:
    promtool = unpacked("prometheus") / "usr" / "bin" / "promtool"
    command = [str(promtool), "check", "metrics"]
    page = summarised()[0].text()
    checked = subprocess.run(command, input=page, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_and_health_are_served_and_the_port_is_free_afterwards() -> None:
    run = FakeRun(ticks=4, targets=1)
    page = Prometheus(export_of("prometheus://:0"), name="fake", models=MODELS).start()
    url = f"http://127.0.0.1:{page.port}"
    assert '"starting"' in get(f"{url}/healthz")[0]
    page.write(list(run.snapshots()))
    text, kind = get(f"{url}/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    assert "lens_run_tick 3.0\n" in text
    assert "lens_run_done 1.0\n" in text
    assert '"tick": 3' in get(f"{url}/healthz")[0]
    page.restart()
    assert "lens_run_tick" not in get(f"{url}/metrics")[0]
    with pytest.raises(urllib.error.HTTPError):
        get(f"{url}/nothing")
    page.close()
    assert not answers(url)


def test_a_scraper_that_asks_for_protobuf_gets_it_and_every_other_one_text() -> None:
    """Prometheus asks for protobuf only where it keeps native histograms; text is what everybody else can read."""
    proto = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
    assert is_preferred([f"{proto};q=0.7,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"])
    assert is_preferred(["text/plain", proto])
    assert not is_preferred([])
    assert not is_preferred(["*/*"])
    assert not is_preferred([f"{proto};q=0.2, application/openmetrics-text;version=1.0.0;q=0.6"])
    assert not is_preferred([f"{proto};q=0"])
    assert not is_preferred([f"{proto};q=much, text/plain"])
    assert not is_preferred(["application/vnd.google.protobuf;proto=some.Other;encoding=delimited"])
    page = Prometheus(export_of("prometheus://:0"), name="fake", models=MODELS).start()
    page.write(list(FakeRun(ticks=2, targets=1).snapshots()))
    request = urllib.request.Request(f"http://127.0.0.1:{page.port}/metrics", headers={"Accept": proto})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("application/vnd.google.protobuf; proto=")
        assert b"lens_run_tick" in reply.read()
    page.close()


def test_the_counts_of_a_run_with_other_bounds_are_not_shown_as_those_of_todays() -> None:
    """Run directories outlive versions: the counts of 25 buckets would be read as those of the first 25 of 30."""
    page = Page(MODELS, "fake")
    for tick in FakeRun(ticks=3, targets=1).snapshots():
        tick.intervals[0].buckets["ttft_ms"].pop()
        page.add(tick)
    families = {f.name: f for f in text_string_to_metric_families(page.text())}
    samples = families["gen_ai_client_operation_time_to_first_chunk_seconds"].samples
    assert [s.labels["le"] for s in samples if s.name.endswith("_bucket")] == ["+Inf"]


def test_the_verdict_the_slos_and_what_limited_the_client_are_series() -> None:
    """An alert rule asks for them by name, and a state that does not hold must be 0, not absent."""
    page, report = summarised()
    for tick in FakeRun(ticks=20, targets=1).snapshots():
        page.add(tick)
    report.slo[0].ci95 = (90.0, None)
    families = {f.name: f for f in text_string_to_metric_families(page.text())}
    verdict = {s.labels["state"]: s.value for s in families["lens_verdict"].samples}
    assert verdict == {"VALID": 1, "INVALID": 0, "INSUFFICIENT": 0}
    assert [s.labels for s in families["lens_verdict_reason"].samples] == [{"code": "few_ticks", "note": "no"}]
    held = {s.labels["expression"]: s.labels["state"] for s in families["lens_slo"].samples if s.value}
    assert held == {slo.expression: slo.state for slo in report.slo}
    values = {(s.labels["expression"], s.labels["bound"]): s.value for s in families["lens_slo_value"].samples}
    assert values["ttft_ms.p99 <= 500", "value"] == 97.3
    assert values["ttft_ms.p99 <= 500", "low"] == 90
    assert ("ttft_ms.p99 <= 500", "high") not in values
    limited = {s.labels["reason"]: s.value for s in families["lens_client_limited_ticks"].samples}
    assert limited["steal"] == 1
    assert limited["starved"] == 0
    assert families["lens_run_phase"].samples[0].labels == {"phase": "steady"}


@pytest.mark.slow
def test_a_real_prometheus_keeps_the_native_histograms_of_a_run(tmp_path: Path) -> None:
    """The encoder is our own: only Prometheus can say whether what it writes is the protocol."""
    run = FakeRun(ticks=10, targets=2)
    page = Prometheus(export_of("prometheus://:0"), name="fake", models=MODELS).start()
    page.write(list(run.snapshots()))
    page.end(run.report())
    metric = "gen_ai_client_operation_time_to_first_chunk_seconds"
    try:
        with PrometheusServer(tmp_path / "server", page.port, native=True) as server:
            deadline = monotonic() + 20
            while not (counts := server.query(f"histogram_count({metric})")):
                assert monotonic() < deadline, server.targets()
                sleep(0.1)
            assert [each["lastError"] for each in server.targets()] == [""]
            sums = {r["metric"]["target"]: float(r["value"][1]) for r in server.query(f"histogram_sum({metric})")}
            medians = server.query(f"histogram_quantile(0.5, {metric})")
            counters = server.query('lens_requests_total{outcome="ok"}')
            odd = server.query(f'{metric}{{gen_ai_request_model="odd \\"name\\"\\\\"}}')
            verdict = server.query("lens_verdict == 1")
    finally:
        page.close()
    report = run.report()
    by_target = {target.name: target for target in report.targets}
    assert {r["metric"]["target"]: float(r["value"][1]) for r in counts} == {
        name: target.metrics["ttft_ms"].count for name, target in by_target.items()
    }
    for name, target in by_target.items():
        d = target.metrics["ttft_ms"]
        assert sums[name] == pytest.approx(d.count * (d.mean or 0) / 1e3)
        median = next(float(r["value"][1]) for r in medians if r["metric"]["target"] == name)
        assert median == pytest.approx((d.p50 or 0) / 1e3, rel=0.045)  # a bucket is 4.4 % wide
    assert sum(float(r["value"][1]) for r in counters) == report.requests.ok
    assert len(odd) == 1
    assert [r["metric"]["state"] for r in verdict] == ["VALID"]


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "http"])
def test_every_dialect_has_its_well_known_names(dialect: str) -> None:
    """A collector groups by these values: a name of our own would be a provider that nobody looks for. The list is that of
    https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md"""
    named = genai_of("t", {"t": (dialect, "m")})
    assert named.operation in ("chat", "text_completion", "generate_content")
    assert named.provider in ("openai", "azure.ai.openai", "anthropic", "gcp.gemini", "cohere")
    assert named.attributes["gen_ai.request.model"] == "m"


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    page = Prometheus(export_of("prometheus://:0"), name="fake", models=MODELS).start()
    with pytest.raises(OutputError, match="cannot listen"):
        Prometheus(export_of(f"prometheus://:{page.port}"), name="fake", models=MODELS).start()
    page.close()


def test_the_exporter_process_serves_a_run_and_ends_with_it(tmp_path: Path) -> None:
    run = FakeRun(ticks=6, targets=1)
    run.write(tmp_path)
    (tmp_path / "summary.json").rename(tmp_path / "held.json")
    port = free_port()
    plan = run.manifest().plan
    plan = type(plan)(
        name="fake",
        targets=plan.targets,
        workload=plan.workload,
        phases=plan.phases,
        export=(export_of(f"prometheus://:{port}"),),
    )
    body = ENCODER.encode(plan)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_latency_lens.cli.processes.export", "--run-dir", str(tmp_path)],
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(len(body).to_bytes(4, "little") + body)
    while (
        not answers(f"http://127.0.0.1:{port}/healthz")
        or "lens_run_tick 5" not in get(f"http://127.0.0.1:{port}/metrics")[0]
    ):
        assert process.poll() is None
    (tmp_path / "held.json").rename(tmp_path / "summary.json")
    while "lens_result_ttft_seconds" not in get(f"http://127.0.0.1:{port}/metrics")[0]:
        assert process.poll() is None
    assert process.wait(20) == 0
