"""Odd plans and flags: each is refused with one line and exit code 2, at once, without a traceback or gigabytes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.cli.options import plan_from, run_options
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import DECODER, ENCODER
from llm_latency_lens.engine.plan.written import masked
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source, keys_of
from llm_latency_lens.engine.planfile.schema import SECTIONS

LIMIT_S = 5.0
MEMORY_BYTES = 1 << 30
TARGET = "target: {name: t, base_url: 'http://127.0.0.1:9/v1', model: m}\n"
LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a: &a0 {x: 1, y: 2}\n" + "".join(
    f"b{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 12)
)

# file name, its text: no plan at all, or one that would break something later
FILES: list[tuple[str, str]] = [
    ("p.yaml", TARGET + "seed: 0x_\n"),
    ("p.yaml", TARGET + "seed: 0b_\n"),
    ("p.yaml", TARGET + f"seed: {'9' * 5000}\n"),
    ("p.yaml", TARGET + "seed: 1:99999999999999999999\n"),
    ("p.yaml", TARGET + "limits: {timeout: 2026-99-99}\n"),
    ("p.yaml", TARGET + "name: !!timestamp 2026-99-99\n"),
    ("p.yaml", TARGET + "name: !!int abc\n"),
    ("p.yaml", TARGET + "name: !!float abc\n"),
    ("p.yaml", TARGET + "name: !!binary '####'\n"),
    ("p.yaml", TARGET + "name: !!set {a, b}\n"),
    ("p.yaml", TARGET + "name: !!python/name:os.system\n"),
    ("p.yaml", TARGET + 'name: "\\uD800"\n'),
    ("p.yaml", "[" * 5000),
    ("p.yaml", "{a: " * 3000),
    ("p.yaml", "a: " + "[" * 150 + "]" * 150 + "\n"),
    ("p.yaml", "&a [*a]\n"),
    ("p.yaml", "a: &a {b: *a}\n"),
    ("p.yaml", "? [1, 2]\n: x\n"),
    ("p.yaml", "? {a: b}\n: x\n"),
    ("p.yaml", "1: x\n"),
    ("p.yaml", "null: x\n"),
    ("p.yaml", LAUGHS),
    ("p.yaml", MERGES),
    ("p.yaml", "a: *nothing\n"),
    ("p.yaml", "%YAML 9.9\n---\na: 1\n"),
    ("p.yaml", "a: \x07\n"),
    ("p.yaml", "a: 'b\n"),
    ("p.yaml", "- " * 2000),
    ("p.yaml", TARGET + "x: [" + "1, " * 120_000 + "1]\n"),
    ("p.yaml", "#" * 11_000_000),
    ("p.json", "[" * 100_000),
    ("p.json", '{"a":' * 100_000),
    ("p.json", '{"seed": ' + "9" * 5000 + "}"),
    ("p.json", '{"seed": 1e999, "target": {"base_url": "http://h", "model": "m"}}'),
    ("p.json", '{"seed": NaN, "target": {"base_url": "http://h", "model": "m"}}'),
    ("p.json", '{"name": "\\ud800", "target": {"base_url": "http://h", "model": "m"}}'),
    ("p.json", '{"\\ud800": 1}'),
    ("p.json", ""),
    ("p.json", "{'a': 1}"),
    ("p.toml", "a = 2026-99-99\n"),
    ("p.toml", "a = 0x_\n"),
    ("p.toml", "a = 99:99:99\n"),
    ("p.toml", "seed = " + "9" * 5000 + "\n"),
    ("p.toml", "a = " + "[" * 5000),
    ("p.toml", "name = 2026-01-01\n[target]\nbase_url = 'http://h'\nmodel = 'm'\n"),
    ("p.toml", "[target]\nbase_url = 'http://h'\nmodel = 'm'\nparameters.at = 2026-01-01T00:00:00Z\n"),
    ("p.toml", "[target]\nbase_url = 'http://h'\nmodel = 'm'\nparameters.x = inf\n"),
    ("p.toml", "[a]\n[a]\n"),
]
# a key of the plan beside TARGET
TOPS = [
    "seed: 18446744073709551616", "seed: -1", "seed: 1.5", "seed: .inf", "seed: .nan", "seed: true", "seed: [1]",
    "name: 5", "name: ''", "name: [a]", "name: {a: b}", "name: false",
    "load: {rate: 1e308}", "load: {rate: .inf}", "load: {rate: .nan}", "load: {rate: 0}", "load: {rate: -1}",
    "load: {rate: 1e-400}", "load: {rate: 1, arrivals: 'gamma:1e-300'}", "load: {rate: 1, arrivals: 'gamma:nan'}",
    "load: {rate: 1, arrivals: 'gamma:inf'}", "load: {rate: 1, arrivals: 'gamma:-1'}", "load: {rate: 1, arrivals: ':'}",
    "load: {rate: 1, arrivals: 5}", "load: {concurrency: 1e300}", "load: {concurrency: 99999999999}",
    "load: {concurrency: -5}", "load: {concurrency: [1, 2]}", "load: {concurrency: {from: 1, to: 2}}",
    "load: {rate: {steps: [[1]]}, }", "load: {rate: {steps: 5}}", "load: {rate: {base: 1}}", "load: []", "load: 5",
    "load: {rate: 1, max_in_flight: 1e18}", "load: {rate: 1, max_in_flight: 0}", "load: {concurrency: 1, stagger: -1}",
    "duration: 1e300s", "duration: 0", "duration: -5s", "duration: .inf", "duration: ''", "duration: [1s]",
    "duration: 5 m s", "requests: 1e300", "requests: 0", "requests: 0.5", "requests: 9e15", "warmup: 0s", "warmup: x",
    "output: {tick: 1ns}", "output: {tick: 0}", "output: {tick: 99d}", "output: {dir: \"a\\0b\"}", "output: {dir: 5}",
    "output: {dir: '~nosuchuser/x'}", "output: {records_max_bytes: 1e300}", "output: {records_max_bytes: -1}",
    "output: {token_times: some}", "output: {token_times: 'slowest:x'}", "output: []",
    "workload: {file: '~nosuchuser/x'}", "workload: {file: \"a\\0b\"}", "workload: {file: ''}", "workload: {file: 5}",
    "workload: {prompts: missing.jsonl}", "workload: missing.csv", "workload: {prompts: []}", "workload: ''",
    "workload: {prompts: {file: missing.jsonl}}", "workload: {synthetic: {input_tokens: 9999999999}}",
    "workload: {synthetic: {input_tokens: {mean: 1e308}}}", "workload: {synthetic: {input_tokens: {mean: .nan}}}",
    "workload: {synthetic: {input_tokens: {uniform: [1, 99999999999]}}}", "workload: {synthetic: 5}",
    "workload: {synthetic: {input_tokens: {values: []}}}", "workload: {synthetic: {input_tokens: {values: [0]}}}",
    "workload: {synthetic: {input_tokens: {values: [1], weights: [0]}}}", "workload: {output_tokens: 0}",
    "workload: {output_tokens: 1e30}", "workload: {prefix_tokens: 1e30}", "workload: {time_scale: 0}",
    "workload: {time_scale: 1e400}", "workload: {think_time: 1e400s}", "workload: {calibration: 1e300}",
    "workload: {template: 5}", "workload: {order: 5}", "workload: {salt: 5}",
    "limits: {timeout: 1e400s}", "limits: {budget_usd: .nan}", "limits: {budget_usd: 0}", "limits: {rpm: .inf}",
    "limits: {rpm: 0}", "limits: {cancel: {share: 2}}", "limits: {max_error_rate: -0.1}", "limits: 5", "limits: []",
    "limits: {burst: 0s}", "retry: {attempts: 1e9}", "retry: {factor: .inf}", "retry: {backoff: 1e400s}", "retry: x",
    "slo: ['ttft_ms.p99 <= 1e400ms x']", "slo: [5]", "slo: {a: b}", "slo: ['[target=x] error_rate <= 1']",
    "slo: ['request [0%]: ttft_ms <= 1']", "until: ['ttft_ms.p99']", "until: [5]", "stamps: kernel", "steady: 5",
    "workers: 1e9", "workers: 0", "workers: {realtime: yes please}", "workers: []",
    "export: 5", "export: ''", "export: 'influxdb'", "export: ['kafka://h']", "export: 'prometheus://h:99999999'",
    "export: 'prometheus://[::1'", "export: 'otlp://h:x'", "export: 'influxdb://h:99999/b'", "export: {influxdb: 5}",
    "export: {influxdb: {}}", "export: {influxdb: {url: 'http://[::1'}}", "export: {otlp: {url: 'http://h:70000'}}",
    "export: {influxdb: {url: u, spool_max_bytes: 1e300}}", "export: {otlp: {url: u, headers: 5}}",
    "price_table: nothing.json", "price_table: \"a\\0\"", "price_table: '~nosuchuser/x'",
    "probe: {every: 0s}", "probe: {every: 1e400s}", "probe: {quiet_hours: '99:99-00:00'}", "probe: {quiet_hours: 5}",
    "probe: {rotate: 1ns}", "probe: {alerts: 5}", "probe: {alerts: [5]}", "probe: {alerts: [{when: 5}]}", "probe: 5",
    "phases: 5", "phases: [5]", "phases: [{requests: 1e300}]", "phases: [{name: 5, requests: 1}]", "phases: {a: b}",
]  # fmt: skip
# what stands in the target
TARGETS = [
    "base_url: 5", "base_url: ''", "base_url: 'http://'", "base_url: 'http://h:99999'", "base_url: 'http://[::1'",
    "base_url: \"http://h\\0\"", "base_url: 'http://h h'", "base_url: 'ftp://h'", "model: 5", "model: ''",
    "parameters: {n: 1180591620717411303424}", "parameters: {x: .inf}", "parameters: {x: !!binary aGk=}",
    "parameters: {1: 2}", "parameters: 5", "headers: {a: 5}", "headers: {'a b': c}", "headers: 5", "weight: 1e400",
    "weight: .nan", "weight: -1", "weight: 0", "rpm: 0", "tpm: x", "burst: 0s", "max_connection_age: 0s",
    "api_key: ''", "api_key: 5", "api_key_env: ''", "api_key_env: 5", "api_key_file: \"a\\0b\"",
    "api_key_file: '~nosuchuser/k'", "api_key_file: /", "ca_file: '~nosuchuser/x'", "ca_file: \"\\0\"", "proxy: 5",
    "proxy: 'http://h:99999'", "resolve: ''", "metrics_url: 5", "metrics_url: 'http://[::1'", "price: 5",
    "price: {input: 1e30, output: 1}", "price: {input: .nan, output: 1}", "provider: 5", "stream: 5", "http: {path: /}",
    "provider: http, http: 5", "provider: http, http: {method: 5}", "provider: http, http: {text: x}", "probe: 5",
]  # fmt: skip
FLAGS = [
    ["--rate", "1e308"], ["--rate", "nan"], ["--rate", "inf"], ["--rate", ""], ["--concurrency", "1e300"],
    ["--concurrency", "99999999999"], ["--requests", "9" * 5000], ["--requests", "x"], ["--duration", "1e300s"],
    ["--duration", ""], ["--seed", "9" * 5000], ["--seed", "0x10"], ["--input-tokens", "9999999999"],
    ["--output-tokens", "1e30"], ["--prompts", "a\udcffb"], ["--prompts", "~nosuchuser/x"], ["--prompt", "\udcff"],
    ["--name", "\udcff"], ["--header", "a: \udcff"], ["--header", ":"], ["--slo", "\udcff"], ["--export", "x"],
    ["--export", "prometheus://:99999"], ["--base-url", "\udcff"], ["--out", "~nosuchuser/x"], ["--timeout", "-1"],
    ["--retries", "9" * 5000], ["--workers", "1e9"], ["--arrivals", "gamma:1e-300", "--rate", "1"], ["--until", "x"],
    ["--stamps", "x"], ["--ca-file", "~nosuchuser/x"], ["--api-key-file", "~nosuchuser/x"], ["--model", "\udcff"],
    ["--nonsense"], ["--rate"], ["no-such-plan.yaml"], ["a\udcff.yaml"], ["~nosuchuser/p.yaml"],
]  # fmt: skip


def target_plan(inside: str) -> str:
    """A plan whose target has one odd key; YAML's flow mapping would refuse a key twice."""
    keys = {part.partition(":")[0].strip() for part in inside.split(", ") if ":" in part}
    plain = [f"{key}: {value}" for key, value in (("base_url", "'http://127.0.0.1:9/v1'"), ("model", "m"))
             if key not in keys]  # fmt: skip
    return f"target: {{{', '.join([*plain, inside])}}}\n"


ALL_FILES = FILES + [("p.yaml", f"{TARGET}{text}\n") for text in TOPS] + [("p.yaml", target_plan(t)) for t in TARGETS]


def refused(path: Path) -> str:
    """The message of the PlanError; read in this process, as every command reads a plan."""
    started = time.process_time()  # not the wall's: the machine may be busy
    with pytest.raises(PlanError) as error:
        plan_from(str(path), {}, {})
    assert time.process_time() - started < LIMIT_S
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "text"), ALL_FILES, ids=[f"{i}-{t[1][-40:]!r}" for i, t in enumerate(ALL_FILES)])
def test_an_odd_plan_is_refused_with_one_line(name: str, text: str, tmp_path: Path) -> None:
    """Whatever a file holds, people hear what is wrong with it and where, and nothing of Python."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert refused(path)


@pytest.mark.parametrize(
    "arguments", FLAGS, ids=[" ".join(row)[:40].encode("ascii", "replace").decode() for row in FLAGS]
)
def test_odd_flags_are_refused_with_one_line(arguments: list[str], tmp_path: Path) -> None:
    """Arguments are bytes that anybody may have typed: what is no text must not end in a traceback, either."""
    runner = CliRunner()
    base = [] if not arguments[0].startswith("-") else ["--base-url", "http://127.0.0.1:9/v1", "--model", "m"]

    @click.command()
    @run_options
    def command(**flags: Any) -> None:
        plan_from(flags.pop("plan_path"), flags, {})

    ended = runner.invoke(command, [*base, *arguments])
    assert isinstance(ended.exception, PlanError) or ended.exit_code == 2, ended.exception
    assert "\n" not in str(ended.exception)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["5s", "1e999s", "${A}", "${A:-\0}", "~nosuchuser/x", "***", "\ud800", "http://[::1", "gamma:0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
SECTION_KEYS = sorted({(struct.__name__, key) for struct in SECTIONS for key in keys_of(struct)})


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SECTION_KEYS), values)
def test_any_value_under_any_key_is_a_plan_or_a_plan_error(place: tuple[str, str], value: Any) -> None:
    """One odd value beside good ones reaches deeper than a document of nothing but odd ones."""
    section, key = place
    target: dict[str, Any] = {"base_url": "http://h", "model": "m"}
    document: dict[str, Any] = {"target": target}
    holders: dict[str, Any] = {
        "TargetKeys": target, "PlanKeys": document, "LimitsKeys": {}, "WorkloadKeys": {}, "LoadKeys": {"rate": 1},
        "Retry": {}, "Workers": {}, "Output": {}, "ProbeKeys": {},
    }  # fmt: skip
    keys = {"LimitsKeys": "limits", "WorkloadKeys": "workload", "LoadKeys": "load", "Retry": "retry"}
    keys |= {"Workers": "workers", "Output": "output", "ProbeKeys": "probe"}
    holder = holders.get(section, document)
    holder[key] = value
    if section in keys:
        document[keys[section]] = holder
    try:
        plan = make_plan(document, Source(), {"A": "b"})
    except PlanError:
        return
    assert DECODER.decode(ENCODER.encode(plan)) == plan
    json.dumps(masked(plan)).encode()


@pytest.mark.slow
def test_the_command_ends_with_2_at_once_in_bounded_memory(tmp_path: Path) -> None:
    """The same through the real command: exit code 2, one line on stderr, and no gigabytes for nine lines of YAML."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    for name, text in [FILES[0], FILES[18], FILES[21], FILES[22], FILES[29], FILES[30], ALL_FILES[60], ALL_FILES[-1]]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "llm_latency_lens.cli", "validate", name]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, preexec_fn=limited)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("lens: ")
        assert ended.stderr.count("\n") == 1
