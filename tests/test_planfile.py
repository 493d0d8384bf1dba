"""Plan files: every key does what it says, in YAML, TOML and JSON alike; what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import (
    DECODER,
    ENCODER,
    MASK,
    SECOND,
    Length,
    Load,
    Plan,
    Secret,
)
from llm_latency_lens.engine.plan.written import is_secret_name, masked, secrets, stripped
from llm_latency_lens.engine.planfile import schema
from llm_latency_lens.engine.planfile.build import make_plan, plan_sha256
from llm_latency_lens.engine.planfile.document import Source, keys_of
from llm_latency_lens.engine.planfile.reading import read_document

S = SECOND
ENVIRON = {"KEY": "sk-1", "INFLUX_TOKEN": "it", "HOST": "h"}
TARGET = "name: t, base_url: 'http://h:1/v1', model: m"

# what stands in the file beside the target, the attribute, its value
TOPS: list[tuple[str, str, Any]] = [
    ("name: nightly", "name", "nightly"),
    ("", "name", "run"),
    ("seed: 7", "seed", 7),
    ("price_table: FILE", "price_table", "FILE"),
    ("slo: ['ttft_ms.p99 <= 500', 'request: e2e_ms <= 9']", "slo", ("ttft_ms.p99 <= 500", "request: e2e_ms <= 9")),
    ("slo: error_rate <= 0.01", "slo", ("error_rate <= 0.01",)),
    ("limits: {timeout: 60s}", "limits.timeout_ns", 60 * S),
    ("limits: {first_token_timeout: 30s}", "limits.first_token_timeout_ns", 30 * S),
    ("limits: {connect_timeout: 2s}", "limits.connect_timeout_ns", 2 * S),
    ("limits: {drain: 0s}", "limits.drain_ns", 0),
    ("limits: {rpm: 10000}", "limits.rpm", 10_000),
    ("limits: {tpm: 2000000}", "limits.tpm", 2_000_000),
    ("limits: {burst: 500ms}", "limits.burst_s", 0.5),
    ("limits: {budget_usd: 5}", "limits.budget_usd", 5),
    ("limits: {max_error_rate: 0.2}", "limits.max_error_rate", 0.2),
    ("limits: {error_window: 5s}", "limits.error_window_ns", 5 * S),
    ("limits: {stop_on_slo: true}", "limits.stop_on_slo", True),
    ("limits: {cancel: {share: 0.5}}", "limits.cancel_share", 0.5),
    ("limits: {cancel: {share: 0.5, after: 2s}}", "limits.cancel_after_ns", 2 * S),
    ("retry: {attempts: 3}", "retry.attempts", 3),
    ("retry: {backoff: 1s}", "retry.backoff_ns", S),
    ("retry: {backoff_max: 60s}", "retry.backoff_max_ns", 60 * S),
    ("retry: {factor: 3}", "retry.factor", 3),
    ("retry: {jitter: 0}", "retry.jitter", 0),
    ("retry: {respect_retry_after: false}", "retry.respect_retry_after", False),
    ("workers: {count: 4}", "workers.count", 4),
    ("workers: {count: auto}", "workers.count", None),
    ("workers: 4", "workers.count", 4),
    ("workers: {pin: false}", "workers.pin", False),
    ("output: {dir: out}", "output.dir", "out"),
    ("output: {records: false}", "output.records", False),
    ("output: {records_max_bytes: 100MB}", "output.records_max_bytes", 100_000_000),
    ("output: {tick: 100ms}", "output.tick_ns", S // 10),
    ("output: {token_times: 'slowest:100'}", "output.token_times", "slowest:100"),
    ("workers: {realtime: off}", "workers.realtime", "off"),
    ("workload: {salt: none}", "workload.salt", "none"),
    ("stamps: segment", "stamps", "segment"),
    ("traceparent: true", "traceparent", True),
    ("gpus: {count: 8, usd_per_hour: 2.5}", "gpus.count", 8),
    ("gpus: {count: 8, usd_per_hour: 2.5}", "gpus.usd_per_hour", 2.5),
    ("gpus: {watts: 700}", "gpus.watts", 700),
    ("export: {otlp: {url: u, spans: 0.25}}", "export.0.spans", 0.25),
    ("steady: true", "steady", True),
    ("until: ['ttft_ms.p99 +-5%']", "until", ("ttft_ms.p99 +-5%",)),
    ("export: {influxdb: {url: u, bucket: b}}", "export.0.bucket", "b"),
    ("export: {otlp: {url: u, interval: 5s}}", "export.0.interval_ns", 5 * S),
    ("export: {otlp: {url: u, spool_max_bytes: 1MiB}}", "export.0.spool_max_bytes", 1 << 20),
    ("export: {influxdb: {url: 'http://h:8086'}}", "export.0.kind", "influxdb"),
    ("export: {influxdb: {url: 'http://h:8086'}}", "export.0.url.value", "http://h:8086"),
    (
        "export: {influxdb: {url: u, token: '${INFLUX_TOKEN}', org: o}}",
        "export.0.token",
        Secret("it"),
    ),
    ("export: {influxdb: {url: u, interval: 1s}}", "export.0.interval_ns", 10**9),
    ("export: {influxdb: {url: u, hdr: true}}", "export.0.hdr", True),
    ("export: {influxdb: {url: u, verify_tls: false}}", "export.0.verify_tls", False),
    ("export: {influxdb: {url: u, spool_max_bytes: 1MiB}}", "export.0.spool_max_bytes", 1 << 20),
    ("export: {otlp: {url: u, headers: {X-Key: v}}}", "export.0.headers", {"X-Key": Secret("v")}),
    ("export: ['prometheus://:9464', {otlp: {url: u}}]", "export.1.kind", "otlp"),
    ("export: {prometheus: {url: ':9464'}}", "export.0.kind", "prometheus"),
    ("export: prometheus://:9464", "export.0.url.value", "prometheus://:9464"),
    ("export: {influxdb: [{url: u}, {url: v}]}", "export.1.url.value", "v"),
    ("warmup: 5s", "phases.0.duration_ns", 5 * S),
    ("warmup: 5s", "phases.0.measure", False),
    ("warmup: 5s", "phases.1.measure", True),
    ("", "phases.0.requests", 100),
    ("duration: 5m", "phases.0.duration_ns", 300 * S),
    ("requests: 30", "phases.0.requests", 30),
    ("phases: [{name: steady, requests: 5}]", "phases.0.name", "steady"),
    ("phases: [{requests: 5}]", "phases.0.name", "phase-1"),
    ("phases: [{requests: 5}]", "phases.0.requests", 5),
    ("phases: [{duration: 5s}]", "phases.0.duration_ns", 5 * S),
    ("phases: [{requests: 5, measure: false}, {requests: 6}]", "phases.0.measure", False),
    ("phases: [{duration: 2s, load: {rate: 5}}]", "phases.0.load.model", "open"),
    ("workload: hello", "workload.prompt", "hello"),
    ("workload: {prompt: hello}", "workload.prompt", "hello"),
    ("workload: {prompts: hello}", "workload.prompt", "hello"),
    ("workload: {file: FILE}", "workload.kind", "file"),
    ("workload: {file: FILE}", "workload.path", "FILE"),
    ("workload: {prompts: {file: FILE}, order: shuffle}", "workload.order", "shuffle"),
    ("workload: {sharegpt: FILE}", "workload.kind", "sharegpt"),
    ("workload: {sessions: FILE}", "workload.kind", "sessions"),
    ("workload: {trace: FILE}", "workload.kind", "trace"),
    ("workload: {trace: FILE}", "phases.0.load.model", "replay"),
    ("workload: {trace: FILE, time_scale: 2}", "workload.time_scale", 2),
    ("workload: {sessions: FILE, think_time: 0s}", "workload.think_time_ns", 0),
    ("workload: {file: FILE, template: 'Q: {{q}} ${A}'}", "workload.template", "Q: {{q}} ${A}"),
    ("workload: {output_tokens: 150}", "workload.output_tokens", Length(mean=150)),
    ("workload: {tokenizer: t.json}", "workload.tokenizer", "t.json"),
    ("workload: {calibration: 1.1}", "workload.calibration", 1.1),
    ("workload: {count_tokens: true, tokenizer: t.json}", "workload.count_tokens", True),
    ("workload: {prefix: unique}", "workload.prefix", "unique"),
    ("workload: {prefix_tokens: 8}", "workload.prefix_tokens", 8),
    ("workload: {keep_replies: true}", "workload.keep_replies", True),
    ("workload: {synthetic: {input_tokens: 9}}", "workload.input_tokens", Length(mean=9)),
    ("workload: {synthetic: {output_tokens: 9}}", "workload.output_tokens", Length(mean=9)),
    ("workload: {synthetic: {}}", "workload.input_tokens", Length(mean=550)),
    ("workload: {output_tokens: {mean: 550, stddev: 150}}", "workload.output_tokens.kind", "normal"),
    ("workload: {output_tokens: {mean: 550, stddev: 150}}", "workload.output_tokens.stddev", 150),
    ("workload: {output_tokens: {mean: 5, distribution: lognormal}}", "workload.output_tokens.kind", "lognormal"),
    ("workload: {output_tokens: {mean: 5, min: 2}}", "workload.output_tokens.low", 2),
    ("workload: {output_tokens: {mean: 5, max: 9}}", "workload.output_tokens.high", 9),
    (
        "workload: {output_tokens: {uniform: [2, 4]}}",
        "workload.output_tokens",
        Length(kind="uniform", mean=3, low=2, high=4),
    ),
    ("workload: {output_tokens: {values: [2, 4]}}", "workload.output_tokens.values", (2, 4)),
    ("workload: {output_tokens: {values: [2, 4], weights: [1, 3]}}", "workload.output_tokens.weights", (1, 3)),
    ("probe: {every: 1m}", "probe.timetables.0.every_ns", 60 * S),
    ("probe: {jitter: 5s}", "probe.timetables.0.jitter_ns", 5 * S),
    ("probe: {quiet_hours: '22:00-06:00'}", "probe.timetables.0.quiet", ((1320, 360),)),
    ("probe: {daily_budget_usd: 2}", "probe.daily_budget_usd", 2),
    ("probe: {rotate: 10m}", "probe.rotate_ns", 600 * S),
    ("probe: {retention: 7d}", "probe.retention_ns", 7 * 86_400 * S),
    ("probe: {alerts: [{when: ttft_ms.p95 > 2000}]}", "probe.alerts.0.when", "ttft_ms.p95 > 2000"),
    ("probe: {alerts: [{when: error_rate > 0, name: a}]}", "probe.alerts.0.name", "a"),
    ("probe: {alerts: [{when: error_rate > 0, over: 10s}]}", "probe.alerts.0.over_ns", 10 * S),
    ("probe: {alerts: [{when: error_rate > 0, target: t}]}", "probe.alerts.0.target", "t"),
    ("probe: {alerts: [{when: error_rate > 0, samples: 9}]}", "probe.alerts.0.samples", 9),
    ("probe: {alerts: [{when: error_rate > 0, webhook: 'http://w'}]}", "probe.alerts.0.webhook.value", "http://w"),
    ("probe: {webhook: 'http://w', alerts: [{when: error_rate > 0}]}", "probe.alerts.0.webhook.value", "http://w"),
]
TARGETS: list[tuple[str, str, Any]] = [
    ("name: local", "name", "local"),
    ("", "provider", "openai"),
    ("provider: anthropic", "provider", "anthropic"),
    ("base_url: 'http://${HOST}:8000/v1'", "base_url", "http://h:8000/v1"),
    ("model: llama", "model", "llama"),
    ("api_key: '${KEY}'", "api_key", Secret("sk-1")),
    ("api_key_env: KEY", "api_key", Secret("sk-1")),
    ("api_key_file: KEYFILE", "api_key", Secret("sk-2")),
    ("headers: {X-A: b}", "headers", {"X-A": "b"}),
    ("headers: {X-A: '${KEY}'}", "headers", {"X-A": Secret("sk-1")}),
    ("headers: {Authorization: b}", "headers", {"Authorization": Secret("b")}),
    ("parameters: {max_tokens: 128, stop: ['${KEY}']}", "parameters", {"max_tokens": 128, "stop": ["sk-1"]}),
    ("system: be brief", "system", "be brief"),
    ("stream: false", "stream", False),
    ("weight: 2", "weight", 2),
    ("api_version: v1", "api_version", "v1"),
    ("provider: http, http: {path: /x, body: {p: '{{prompt}}'}, text: /t}", "http.path", "/x"),
    ("proxy: 'http://u:p@q:1'", "proxy", Secret("http://u:p@q:1")),
    ("proxy: ''", "proxy", Secret("")),
    ("verify_tls: false", "verify_tls", False),
    ("ca_file: FILE", "ca_file", "FILE"),
    ("resolve: 127.0.0.1", "resolve", "127.0.0.1"),
    ("fresh_connections: true", "fresh_connections", True),
    ("max_connection_age: 30s", "max_connection_age_ns", 30 * S),
    ("rpm: 60", "rpm", 60),
    ("tpm: 600", "tpm", 600),
    ("burst: 2s", "burst_s", 2),
    ("metrics_url: 'http://h/metrics'", "metrics_urls", ("http://h/metrics",)),
    ("metrics_interval: 30s", "metrics_interval_ns", 30 * S),
    ("metrics_url: ['http://h/metrics', 'http://g']", "metrics_urls", ("http://h/metrics", "http://g")),
    (
        "price: {input: 1, output: 2, cached_input: 0.1, cache_write: 3, reasoning: 4}",
        "price",
        {"input": 1, "output": 2, "cached_input": 0.1, "cache_write": 3, "reasoning": 4},
    ),
]
LOADS: list[tuple[str, str, Any]] = [
    ("concurrency: 8", "model", "closed"),
    ("concurrency: 8", "shapes.0.start", 8),
    ("concurrency: 8, stagger: 2s", "stagger_ns", 2 * S),
    ("rate: 50", "model", "open"),
    ("rate: 600/m", "shapes.0.end", 10),
    ("rate: 50", "arrivals", "constant"),
    ("rate: 50, arrivals: poisson", "arrivals", "poisson"),
    ("rate: 50, arrivals: 'gamma:0.5'", "gamma_shape", 0.5),
    ("rate: 50, max_in_flight: 500", "max_in_flight", 500),
    ("rate: 50, max_in_flight: 500, overflow: drop", "overflow", "drop"),
    ("rate: {from: 1, to: 9}", "shapes.0.end", 9),
    ("rate: {from: 1, to: 9, curve: exponential}", "shapes.0.curve", "exponential"),
    ("rate: {steps: [1, 2]}", "shapes.1.duration_ns", 5 * S),
    ("rate: {steps: [[1, 3s], [2, 7s]]}", "shapes.0.duration_ns", 3 * S),
    ("concurrency: {base: 1, spike: {to: 9, at: 2s, for: 3s}}", "shapes.1.start", 9),
    ("concurrency: {base: 1, spike: {to: 9, at: 2s, for: 3s}}", "shapes.2.duration_ns", 5 * S),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that plans may name; a row writes FILE and KEYFILE."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "some").write_text("hello\n")
    (folder / "key").write_text("sk-2\n")
    return {"FILE": str(folder / "some"), "KEYFILE": str(folder / "key")}


def named(value: Any, files: dict[str, str]) -> Any:
    if isinstance(value, str):
        return files.get(value, value)
    if isinstance(value, dict):
        return {key: named(item, files) for key, item in value.items()}
    return [named(item, files) for item in value] if isinstance(value, list) else value


def document_of(row: tuple[str, str, str], files: dict[str, str]) -> dict[str, Any]:
    """The document that a row's text makes: at the top, in the target, in the load."""
    top, inside, load = row
    target = yaml.safe_load(f"{{{TARGET}}}") | yaml.safe_load(f"{{{inside}}}")
    document = (yaml.safe_load(top) or {}) | {"targets": [target]}
    if load:
        document |= {"duration": "10s", "load": yaml.safe_load(f"{{{load}}}")}
    return named(document, files)


ROWS = (
    [((text, "", ""), attribute, value) for text, attribute, value in TOPS]
    + [(("", text, ""), f"targets.0.{attribute}", value) for text, attribute, value in TARGETS]
    + [(("", "", text), f"phases.0.load.{attribute}", value) for text, attribute, value in LOADS]
)


def planned(document: dict[str, Any], environ: dict[str, str] | None = None) -> Plan:
    return make_plan(document, Source(), ENVIRON if environ is None else environ)


def at(plan: Any, attribute: str) -> Any:
    for part in attribute.split("."):
        plan = plan[int(part)] if part.isdigit() else getattr(plan, part)
    return plan


@pytest.mark.parametrize(("row", "attribute", "value"), ROWS, ids=[f"{''.join(r[0])} -> {r[1]}" for r in ROWS])
def test_a_key_sets_its_part_of_the_plan(
    row: tuple[str, str, str], attribute: str, value: Any, files: dict[str, str]
) -> None:
    assert at(planned(document_of(row, files)), attribute) == named(value, files)


def test_every_key_of_a_plan_has_a_row(files: dict[str, str]) -> None:
    known = {key for struct in schema.SECTIONS for key in keys_of(struct)}

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    used = set().union(*(keys(document_of(row, files)) for row, _, _ in ROWS))
    assert known - used == {"replay", "plugin", "options"}  # they have tests of their own


@pytest.mark.slow
def test_every_field_of_a_plan_can_be_set(files: dict[str, str]) -> None:
    seen: set[tuple[str, str]] = set()
    fields: set[tuple[str, str]] = set()

    def walk(part: Any) -> None:
        if isinstance(part, msgspec.Struct):
            for info in msgspec.structs.fields(part):
                value = getattr(part, info.name)
                fields.add((type(part).__name__, info.name))
                if info.required or value != info.default:
                    seen.add((type(part).__name__, info.name))
                walk(value)
        elif isinstance(part, tuple | list):
            for item in part:
                walk(item)

    for row, _, _ in ROWS:
        walk(planned(document_of(row, files)))
    left = {f"{kind}.{name}" for kind, name in fields - seen if kind not in ("Generic", "Load")}
    assert left == set()


def test_yaml_toml_and_json_give_the_same_plan(tmp_path: Path) -> None:
    texts = {
        "p.yaml": """
name: nightly
targets:
  - {name: local, base_url: "http://h:8000/v1", model: llama, api_key: "${KEY}", parameters: {max_tokens: 128}}
workload: {prompts: {synthetic: {input_tokens: {mean: 550, stddev: 150}, output_tokens: 150}}}
phases:
  - {name: warmup, duration: 10s, load: {concurrency: 8}, measure: false}
  - {name: steady, duration: 5m, load: {rate: 50, arrivals: poisson, max_in_flight: 500}}
limits: {timeout: 120s, first_token_timeout: 30s, rpm: 10000, tpm: 2000000, budget_usd: 5, max_error_rate: 0.2}
retry: {attempts: 1}
slo: ["ttft_ms.p99 <= 500", "error_rate <= 0.01", "request: ttft_ms <= 800 and tpot_ms <= 40"]
workers: {count: auto, pin: true}
export: {influxdb: {url: "http://127.0.0.1:8086", org: o, bucket: b, token: "${INFLUX_TOKEN}", interval: 1s}}
output: {dir: runs, records: true, records_max_bytes: 1GiB}
""",
        "p.toml": """
name = "nightly"
slo = ["ttft_ms.p99 <= 500", "error_rate <= 0.01", "request: ttft_ms <= 800 and tpot_ms <= 40"]
retry.attempts = 1
workers = {count = "auto", pin = true}
output = {dir = "runs", records = true, records_max_bytes = "1GiB"}
[[targets]]
name = "local"
base_url = "http://h:8000/v1"
model = "llama"
api_key = "${KEY}"
parameters.max_tokens = 128
[workload.prompts.synthetic]
input_tokens = {mean = 550, stddev = 150}
output_tokens = 150
[[phases]]
name = "warmup"
duration = "10s"
measure = false
load.concurrency = 8
[[phases]]
name = "steady"
duration = "5m"
load = {rate = 50, arrivals = "poisson", max_in_flight = 500}
[limits]
timeout = "120s"
first_token_timeout = "30s"
rpm = 10000
tpm = 2000000
budget_usd = 5
max_error_rate = 0.2
[export.influxdb]
url = "http://127.0.0.1:8086"
org = "o"
bucket = "b"
token = "${INFLUX_TOKEN}"
interval = "1s"
""",
    }
    texts["p.json"] = json.dumps(yaml.safe_load(texts["p.yaml"]))
    plans = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        document, source = read_document(tmp_path / name)
        plans[name] = make_plan(document, source, ENVIRON)
    assert plans["p.yaml"] == plans["p.toml"] == plans["p.json"]
    assert plans["p.yaml"].phases[1].load.arrivals == "poisson"


WRONG: list[tuple[str, tuple[str, str, str], str]] = [
    ("a key of the plan", ("nmae: x", "", ""), r"unknown key 'nmae' \(nmae\); did you mean 'name'"),
    ("a key of a target", ("", "modle: x", ""), r"unknown key 'modle' \(targets\[0\].modle\); did you mean 'model'"),
    ("a key of limits", ("limits: {timeuot: 1s}", "", ""), r"\(limits.timeuot\); did you mean 'timeout'"),
    ("a key of retry", ("retry: {attemps: 1}", "", ""), r"\(retry.attemps\); did you mean 'attempts'"),
    ("a key of workers", ("workers: {cuont: 1}", "", ""), r"\(workers.cuont\); did you mean 'count'"),
    ("a key of output", ("output: {dri: x}", "", ""), r"\(output.dri\); did you mean 'dir'"),
    ("a key of a load", ("", "", "rtae: 5"), r"\(load.rtae\); did you mean 'rate'"),
    ("a key of a phase", ("phases: [{durtion: 5s}]", "", ""), r"\(phases\[0\].durtion\); did you mean 'duration'"),
    ("a key of a workload", ("workload: {flie: x}", "", ""), r"\(workload.flie\); did you mean 'file'"),
    ("a key of a length", ("workload: {output_tokens: {maen: 5}}", "", ""), r"output_tokens.maen\); did you mean 'mean'"),
    ("a key of a price", ("", "price: {imput: 1, output: 1}", ""), r"price.imput\); did you mean 'input'"),
    ("an exporter", ("export: {influxbd: {url: u}}", "", ""), "did you mean 'influxdb'"),
    ("a key of an export", ("export: {influxdb: {url: u, buket: b}}", "", ""), "did you mean 'bucket'"),
    ("a key of another export", ("export: {prometheus: {url: u, bucket: b}}", "", ""), "unknown key 'bucket'"),
    ("an interval of nothing", ("export: {influxdb: {url: u, interval: 0s}}", "", ""), "interval must be > 0"),
    ("a provider", ("", "provider: opnai", ""), "provider must be one of .*did you mean 'openai'"),
    ("a key of the probe", ("probe: {evry: 1m}", "", ""), r"\(probe.evry\); did you mean 'every'"),
    ("a rate below 0", ("", "", "rate: -5/s"), r"rate must be > 0, got '-5/s' \(load.rate\)"),
    ("half a client", ("", "", "concurrency: 1.5"), "concurrency must be an integer, got 1.5"),
    ("two loads", ("", "", "concurrency: 1, rate: 5"), "load has concurrency and rate, one of them is wanted"),
    ("a load of nothing", ("", "", "arrivals: poisson"), "arrivals needs rate, concurrency or replay beside it"),
    ("arrivals in closed loop", ("", "", "concurrency: 1, arrivals: poisson"), "is for open loop"),
    ("overflow without a cap", ("", "", "rate: 1, overflow: drop"), "max_in_flight, which is missing"),
    ("replay without a trace", ("", "", "replay: true"), "needs a workload with timestamps"),
    ("arrivals nobody knows", ("", "", "rate: 1, arrivals: normal"), "must be constant, poisson or gamma:SHAPE"),
    ("gamma without shape", ("", "", "rate: 1, arrivals: gamma"), "must be constant, poisson or gamma:SHAPE"),
    ("gamma of 0", ("", "", "rate: 1, arrivals: 'gamma:0'"), "must be gamma:SHAPE with a number > 0"),
    ("a spike after the end", ("", "", "rate: {base: 1, spike: {to: 9, at: 8s, for: 3s}}"), "ends after the phase"),
    ("a ramp of nothing", ("", "", "rate: {from: 0, to: 0}"), "is 0 from beginning to end"),
    ("exponential from 0", ("", "", "rate: {from: 0, to: 1, curve: exponential}"), "cannot grow exponentially"),
    ("a phase without end", ("phases: [{load: {rate: 5}}]", "", ""), "the phase never ends"),
    ("no phase", ("phases: []", "", ""), "phases must not be empty"),
    ("nothing measured", ("phases: [{requests: 1, measure: false}]", "", ""), "no phase is measured"),
    ("phases and duration", ("phases: [{requests: 1}]\nduration: 5s", "", ""), "duration and phases cannot both"),
    ("two phases of a name", ("phases: [{name: a, requests: 1}, {name: a, requests: 1}]", "", ""), "names must differ"),
    ("two sources of prompts", ("workload: {prompt: a, file: FILE}", "", ""), "one source of prompts"),
    ("a file that is missing", ("workload: {file: missing.jsonl}", "", ""), "file does not exist, got 'missing.jsonl'"),
    ("a first token later than all", ("limits: {first_token_timeout: 200s}", "", ""), "is longer than timeout"),
    ("an error rate above 1", ("limits: {max_error_rate: 20}", "", ""), "max_error_rate must be <= 1, got 20"),
    ("an SLO with its place", ("slo: ['ttf_ms.p99 <= 1']", "", ""), r"did you mean 'ttft_ms'\? \(slo\[0\]\)"),
    ("a query in the URL", ("", "base_url: 'http://h?key=hunter2'", ""), "must not have a query"),
    ("credentials in the URL", ("", "base_url: 'http://u:hunter2@h'", ""), "must not hold credentials"),
    ("two keys", ("", "api_key: hunter2, api_key_env: KEY", ""), "api_key and api_key_env cannot both be given"),
    ("a key for a name", ("", "api_key_env: hunter2-x", ""), "must be the name of an environment variable"),
    ("a variable that is not set", ("", "api_key_env: NONE", ""), "environment variable NONE is not set"),
    ("a header with a line break", ("", 'headers: {X-A: "hunter2\\r\\nX: 1"}', ""), "header X-A must be one line"),
    ("a header's name", ("", "headers: {'X A: hunter2': x}", ""), "a header's name is letters"),
    ("a header twice", ("", "headers: {X-A: a, x-a: b}", ""), "header x-a is given twice"),
    ("a proxy with TLS", ("", "proxy: 'https://u:hunter2@p'", ""), "proxy must begin with http://"),
    ("http without its part", ("", "provider: http", ""), "http is needed for provider http"),
    ("its part without http", ("", "http: {path: /x}", ""), "http is only for provider http"),
    ("an export nobody knows", ("export: 'kafka://hunter2'", "", ""), "export must begin with influxdb://"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "row", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_named_with_its_place(
    why: str, row: tuple[str, str, str], message: str, files: dict[str, str]
) -> None:
    with pytest.raises(PlanError, match=message) as error:
        planned(document_of(row, files))
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_names_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text("name: x\ntargets:\n  - base_url: http://h\n    model: m\n    wieght: 2\n")
    document, source = read_document(path)
    with pytest.raises(
        PlanError, match=r"unknown key 'wieght' \(targets\[0\].wieght, nightly.yaml line 5\); did you mean 'weight'"
    ):
        make_plan(document, source, {})


def test_a_single_target_may_stand_alone() -> None:
    target = {"base_url": "http://h/v1", "model": "m"}
    assert planned({"target": target}) == planned({"targets": [target]})
    with pytest.raises(PlanError, match="target and targets cannot both be given"):
        planned({"target": target, "targets": [target]})
    with pytest.raises(PlanError, match="the plan has no target; give --base-url"):
        planned({})


def test_targets_without_names_get_them_from_their_hosts() -> None:
    target = {"base_url": "http://h/v1", "model": "m"}
    plan = planned({"targets": [target, target, {**target, "base_url": "http://g"}, target]})
    assert [each.name for each in plan.targets] == ["h", "h-2", "g", "h-3"]
    with pytest.raises(PlanError, match="stands for two targets; names must differ"):
        planned({"targets": [target, {**target, "name": "h"}]})


def test_a_replay_follows_the_trace_unless_a_load_says_otherwise(files: dict[str, str]) -> None:
    trace = "workload: {trace: FILE}"
    assert planned(document_of((trace, "", "replay: true, max_in_flight: 5"), files)).phases[0].load.max_in_flight == 5
    assert planned(document_of((trace, "", "rate: 5"), files)).phases[0].load.model == "open"


def test_a_rate_of_sessions_is_partly_open(files: dict[str, str]) -> None:
    plan = planned(document_of(("workload: {sessions: FILE}", "", "rate: 5"), files))
    assert plan.phases[0].load.model == "partly_open"


def test_a_warm_up_is_flat_at_the_level_the_load_begins_with(files: dict[str, str]) -> None:
    plan = planned(document_of(("warmup: 5s", "", "rate: {from: 2, to: 9}, arrivals: poisson"), files))
    warmup: Load = plan.phases[0].load
    assert (warmup.shapes[0].start, warmup.shapes[0].end, warmup.arrivals) == (2, 2, "poisson")


KEYS: list[tuple[str, dict[str, str], dict[str, str], str | None]] = [
    ("the provider's variable", {"base_url": "http://h"}, {"OPENAI_API_KEY": "a"}, "a"),
    ("none for a server of one's own", {"base_url": "http://h"}, {}, None),
    ("the plan's before the variable", {"base_url": "http://h", "api_key": "b"}, {"OPENAI_API_KEY": "a"}, "b"),
    ("another provider's variable", {"base_url": "http://h", "provider": "anthropic"}, {"ANTHROPIC_API_KEY": "c"}, "c"),
    ("a blank at its end", {"base_url": "http://h", "api_key": " b\n"}, {}, "b"),
]


@pytest.mark.parametrize(("why", "target", "environ", "key"), KEYS, ids=[row[0] for row in KEYS])
def test_a_target_finds_its_key(why: str, target: dict[str, str], environ: dict[str, str], key: str | None) -> None:
    found = planned({"target": target | {"model": "m"}}, environ).targets[0].api_key
    assert (found and found.value) == key


def test_the_public_endpoint_needs_a_key() -> None:
    for target in ({}, {"base_url": "https://api.openai.com/v1"}, {"base_url": "https://api.openai.com/v1/"}):
        with pytest.raises(PlanError, match=r"no API key for openai .*set OPENAI_API_KEY"):
            planned({"target": {"model": "m", **target}}, {})
        planned({"target": {"model": "m", **target}}, {"OPENAI_API_KEY": "a"})


def test_secrets_are_in_the_plan_and_nowhere_people_look(files: dict[str, str]) -> None:
    row = (
        "export: {influxdb: {url: 'http://u:hunter2@h', token: hunter2}}\nprobe: {webhook: 'http://w/hunter2', alerts: [{when: error_rate > 0}]}",
        "api_key: hunter2, headers: {X-Key: hunter2}, proxy: 'http://u:hunter2@p'",
        "",
    )
    plan = planned(document_of(row, files))
    assert sum("hunter2" in secret for secret in secrets(plan)) == 6
    for shown in (repr(plan), str(plan), json.dumps(masked(plan)), ENCODER.encode(stripped(plan)).decode("latin-1")):
        assert "hunter2" not in shown
        assert MASK in shown
    assert list(secrets(stripped(plan))) == [MASK] * 6


@pytest.mark.slow
def test_a_plan_goes_to_the_workers_whole_and_has_one_identity(files: dict[str, str]) -> None:
    for row, _, _ in ROWS:
        plan = planned(document_of(row, files))
        assert DECODER.decode(ENCODER.encode(plan)) == plan
        assert plan_sha256(plan) == plan_sha256(stripped(plan))
    assert plan_sha256(planned(document_of(("seed: 1", "", ""), files))) != plan_sha256(
        planned(document_of(("seed: 2", "", ""), files))
    )


@pytest.mark.parametrize("row", [row for row, _, _ in ROWS], ids=["".join(row) or "-" for row, _, _ in ROWS])
def test_plan_json_is_a_plan_file_of_the_same_plan(row: tuple[str, str, str], files: dict[str, str]) -> None:
    """`lens run RUN_DIR/plan.json` repeats a run: what the file says must come back exactly as it was."""
    plan = planned(document_of(row, files))
    text = json.loads(json.dumps(masked(plan)))
    if MASK in json.dumps(text):
        with pytest.raises(PlanError, match=r"is masked in this file .*write \$\{NAME\} of an environment variable"):
            planned(text)
    else:
        assert msgspec.structs.replace(planned(text), references=()) == msgspec.structs.replace(plan, references=())


def test_what_came_from_the_environment_is_in_no_file_wherever_it_stood(files: dict[str, str]) -> None:
    """plan.json and report.html are shared; ${NAME} in any key may be a secret, and stays ${NAME} there."""
    environ = {"SECRET": "hunter2", "HOST": "h"}
    target = {
        "name": "t", "provider": "http", "base_url": "http://${HOST}/v1", "model": "m", "system": "you know ${SECRET}",
        "parameters": {"a": ["${SECRET}"], "api_token": "hunter3", "max_tokens": 5}, "metrics_url": "http://h/${SECRET}",
        "headers": {"X-A": "${SECRET}", "Authorization": "Bearer hunter3"}, "api_key": "${SECRET}",
        "http": {"path": "/x?key=${SECRET}", "body": {"k": "{{prompt}}", "password": "hunter3", "x": "${SECRET}"}},
    }  # fmt: skip
    plan = planned({"targets": [target], "workload": "say ${SECRET}"}, environ)
    text = json.dumps(masked(plan))
    assert "hunter" not in text
    assert text.count("${SECRET}") == 8
    assert masked(plan)["targets"][0]["parameters"] == {"a": ["${SECRET}"], "api_token": MASK, "max_tokens": 5}
    kept = stripped(plan).targets[0]
    assert "hunter" not in repr((kept.parameters, kept.system, kept.http, kept.headers, kept.api_key))
    assert (kept.base_url, kept.model) == ("http://h/v1", "m")
    other = planned({"targets": [target], "workload": "say ${SECRET}"}, {**environ, "HOST": "g"})
    assert plan_sha256(plan) != plan_sha256(other)


@pytest.mark.parametrize("name", ["api_key", "X-Auth-Token", "apiKey", "password", "Authorization", "client.secret"])
def test_a_name_of_a_secret_is_known(name: str) -> None:
    """The values of parameters and headers of such names are masked even where they are written out in the plan."""
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["max_tokens", "stop", "keyboard", "tokenizer", "monkey", "n", "author"])
def test_a_name_that_only_looks_alike_is_no_secret(name: str) -> None:
    """A masked parameter cannot be run again from plan.json: none may be masked without need."""
    assert not is_secret_name(name)


@pytest.mark.parametrize("workload", ["PATH", {"prompts": "PATH"}, {"prompts": {"file": "PATH"}}, {"file": "PATH"}])
@pytest.mark.parametrize("name", ["prompts.jsonl", "plain"])
def test_a_text_that_names_a_file_is_the_file(workload: Any, name: str, tmp_path: Path) -> None:
    """`prompts: prompts.jsonl` once sent the words "prompts.jsonl" a thousand times, and nothing said so."""
    path = tmp_path / name
    path.write_text("hello\n")
    target = {"base_url": "http://h", "model": "m"}
    plan = planned({"target": target, "workload": named(workload, {"PATH": str(path)})})
    assert (plan.workload.kind, plan.workload.path) == ("file", str(path))
    literal = planned({"target": target, "workload": {"prompt": str(path)}}).workload
    assert (literal.kind, literal.prompt) == ("prompt", str(path))


def test_a_text_that_looks_like_a_missing_file_is_refused() -> None:
    """A typo in a file's name must not become a prompt."""
    for workload in ("no.jsonl", {"prompts": "no.CSV"}):
        with pytest.raises(PlanError, match="does not exist, got 'no"):
            planned({"target": {"base_url": "http://h", "model": "m"}, "workload": workload})


KEY_SHAPES = ["sk-abcdefgh12345678", "sk-ant-api03-abcdefgh", "AIzaSyA1234567890abcdef", "hf_abcdefghijkl",
              "gsk_abcdefghijk", "a1" * 20, "eyJhbGciOiJIUzI1NiJ9.x"]  # fmt: skip


@pytest.mark.parametrize("key", KEY_SHAPES)
@pytest.mark.parametrize("place", ["base_url", "ca_file", "api_key_file", "weight", "provider", "metrics_url"])
def test_a_key_in_the_wrong_place_is_not_shown(place: str, key: str) -> None:
    """People paste keys where a path or a host is wanted; the error goes into CI logs."""
    with pytest.raises(PlanError) as error:
        planned({"target": {"base_url": "http://h", "model": "m", place: key}})
    assert key not in str(error.value)


keys = st.sampled_from(sorted({key for struct in schema.SECTIONS for key in keys_of(struct)}))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "5s", "http://h", "1e9", "${KEY}", "auto", "a: b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it measures the machine
@given(st.dictionaries(keys, values, max_size=6), st.booleans())
def test_any_document_is_a_plan_or_a_plan_error(document: dict[str, Any], target: bool) -> None:
    if target:
        document = {
            key: value for key, value in document.items() if key in keys_of(schema.PlanKeys) and key != "targets"
        }
        document["target"] = {"base_url": "http://h", "model": "m"}
    try:
        plan = planned(document)
    except PlanError:
        return
    assert DECODER.decode(ENCODER.encode(plan)).phases
