"""The flags of `lens run`: each mirrors a plan key, wins over the file, and is named in errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from llm_latency_lens.cli.options import plan_from, run_options
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import SECOND, Length, Plan, Secret
from llm_latency_lens.engine.planfile.document import Source
from llm_latency_lens.engine.planfile.flags import FLAGS as DECLARED
from llm_latency_lens.engine.planfile.flags import apply_flags

S = SECOND
ENVIRON = {"KEY": "sk-1"}
BASE = ["--base-url", "http://h:1/v1", "--model", "m"]


def flags(*arguments: str) -> dict[str, Any]:
    """What click makes of a command line."""
    found: dict[str, Any] = {}

    @click.command()
    @run_options
    def command(**given: Any) -> None:
        found.update(given)

    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return found


def planned(*arguments: str, path: Path | None = None) -> Plan:
    given = flags(*arguments)
    assert given.pop("plan_path") is None
    return plan_from(str(path) if path else None, given, ENVIRON)


def at(plan: Any, attribute: str) -> Any:
    for part in attribute.split("."):
        plan = plan[int(part)] if part.isdigit() else getattr(plan, part)
    return plan


# the flags, the attribute, its value; FILE and KEYFILE stand for files that exist
FLAGS: list[tuple[list[str], str, Any]] = [
    ([], "targets.0.provider", "openai"),
    (["--provider", "anthropic"], "targets.0.provider", "anthropic"),
    (["--base-url", "http://g:2/v1"], "targets.0.base_url", "http://g:2/v1"),
    (["--model", "llama"], "targets.0.model", "llama"),
    (["--api-key-env", "KEY"], "targets.0.api_key", Secret("sk-1")),
    (["--api-key-file", "KEYFILE"], "targets.0.api_key", Secret("sk-2")),
    (["--header", "X-A: b"], "targets.0.headers", {"X-A": "b"}),
    (["--header", "X-A: b", "--header", "X-C:d: e"], "targets.0.headers", {"X-A": "b", "X-C": "d: e"}),
    (["--header", "Authorization: b"], "targets.0.headers", {"Authorization": Secret("b")}),
    (["--ca-file", "FILE"], "targets.0.ca_file", "FILE"),
    (["--insecure"], "targets.0.verify_tls", False),
    (["--proxy", "http://p:1"], "targets.0.proxy", Secret("http://p:1")),
    (["--proxy", ""], "targets.0.proxy", Secret("")),
    (["--fresh-connections"], "targets.0.fresh_connections", True),
    (["--no-stream"], "targets.0.stream", False),
    (["--traceparent"], "traceparent", True),
    (["--simulate"], "targets.0.name", "simulator"),
    (["--simulate"], "name", "simulate"),
    (["--prompt", "hello"], "workload.prompt", "hello"),
    (["--prompts", "FILE"], "workload.path", "FILE"),
    (["--input-tokens", "550"], "workload.input_tokens", Length(mean=550)),
    (["--output-tokens", "150"], "workload.output_tokens", Length(mean=150)),
    (["--concurrency", "4"], "phases.0.load.shapes.0.start", 4),
    (["--concurrency", "4", "--stagger", "2s"], "phases.0.load.stagger_ns", 2 * S),
    (["--rate", "50"], "phases.0.load.model", "open"),
    (["--rate", "600/m"], "phases.0.load.shapes.0.start", 10),
    (["--rate", "5", "--arrivals", "poisson"], "phases.0.load.arrivals", "poisson"),
    (["--rate", "5", "--arrivals", "gamma:0.5"], "phases.0.load.gamma_shape", 0.5),
    (["--rate", "5", "--max-in-flight", "9"], "phases.0.load.max_in_flight", 9),
    (["--rate", "5", "--max-in-flight", "9", "--overflow", "drop"], "phases.0.load.overflow", "drop"),
    (["--requests", "30"], "phases.0.requests", 30),
    (["--duration", "30s"], "phases.0.duration_ns", 30 * S),
    (["--warmup", "5s"], "phases.0.duration_ns", 5 * S),
    (["--timeout", "60s"], "limits.timeout_ns", 60 * S),
    (["--first-token-timeout", "5s"], "limits.first_token_timeout_ns", 5 * S),
    (["--connect-timeout", "2s"], "limits.connect_timeout_ns", 2 * S),
    (["--rpm", "60"], "limits.rpm", 60),
    (["--tpm", "600"], "limits.tpm", 600),
    (["--budget-usd", "0.5"], "limits.budget_usd", 0.5),
    (["--max-error-rate", "0.1"], "limits.max_error_rate", 0.1),
    (["--retries", "2"], "retry.attempts", 3),
    (["--workers", "4"], "workers.count", 4),
    (["--workers", "auto"], "workers.count", None),
    (["--no-pin"], "workers.pin", False),
    (["--seed", "7"], "seed", 7),
    (["--slo", "error_rate <= 0.1", "--slo", "ttft_ms.p99 < 5"], "slo", ("error_rate <= 0.1", "ttft_ms.p99 < 5")),
    (["--name", "nightly"], "name", "nightly"),
    (["--out", "results"], "output.dir", "results"),
    (["--until", "ttft_ms.p99 +-5%"], "until", ("ttft_ms.p99 +-5%",)),
    (["--steady"], "steady", True),
    (["--stamps", "read"], "stamps", "read"),
    (["--export", "prometheus://:9464", "--export", "influxdb://h"], "export.1.url.value", "influxdb://h"),
]
OUTSIDE_THE_PLAN = {"plan_path", "as_json", "quiet", "strict"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("options")
    (folder / "some").write_text("hello\n")
    (folder / "key").write_text("sk-2\n")
    return {"FILE": str(folder / "some"), "KEYFILE": str(folder / "key")}


@pytest.mark.parametrize(("arguments", "attribute", "value"), FLAGS, ids=[" ".join(row[0]) or "none" for row in FLAGS])
def test_a_flag_sets_its_part_of_the_plan(
    arguments: list[str], attribute: str, value: Any, files: dict[str, str]
) -> None:
    plan = planned(*BASE, *(files.get(word, word) for word in arguments))
    assert at(plan, attribute) == (files.get(value, value) if isinstance(value, str) else value)


def test_every_flag_has_a_row() -> None:
    given = {
        name
        for arguments, _, _ in FLAGS
        for name, value in flags(*BASE, *arguments).items()
        if value not in (None, False, ())
    }
    assert set(flags()) - given == OUTSIDE_THE_PLAN
    assert len(DECLARED) + 1 == len(flags())


@pytest.mark.parametrize("name", ["--json", "--quiet", "--strict"])
def test_flags_of_output_are_no_part_of_the_plan(name: str) -> None:
    assert planned(*BASE, name) == planned(*BASE)


FILE = """
name: nightly
target: {base_url: "http://h:1/v1", model: m, api_key: "sk-file", headers: {x-a: file, X-B: file}, weight: 2, proxy: "http://q"}
workload: {file: FILE, order: shuffle}
phases:
  - {name: warm, duration: 1s, load: {concurrency: 2}, measure: false}
  - {name: steady, duration: 5m, load: {rate: 50, arrivals: poisson, max_in_flight: 500}}
limits: {timeout: 120s, rpm: 10}
retry: {attempts: 4, backoff: 1s}
slo: ["ttft_ms.p99 <= 500"]
workers: 2
export: prometheus://:9464
output: {dir: runs, records: false}
seed: 1
"""
# why, the flags, the attribute, its value beside the file
OVERRIDES: list[tuple[str, list[str], str, Any]] = [
    ("nothing", [], "name", "nightly"),
    ("one key of a part, the others stay", ["--timeout", "5s"], "limits.timeout_ns", 5 * S),
    ("the others stay", ["--timeout", "5s"], "limits.rpm", 10),
    ("a target's model", ["--model", "n"], "targets.0.model", "n"),
    ("the target's others stay", ["--model", "n"], "targets.0.weight", 2),
    ("another key", ["--api-key-env", "KEY"], "targets.0.api_key", Secret("sk-1")),
    ("no proxy", ["--proxy", ""], "targets.0.proxy", Secret("")),
    ("a header in another case, the other stays", ["--header", "X-A: flag"], "targets.0.headers", {"X-B": "file", "X-A": "flag"}),
    ("a prompt for a file", ["--prompt", "hello"], "workload.kind", "prompt"),
    ("the workload's options stay", ["--prompt", "hello"], "workload.order", "shuffle"),
    ("tokens beside the file's prompts", ["--output-tokens", "9"], "workload.kind", "file"),
    ("another rate keeps the arrivals", ["--rate", "5"], "phases.1.load.arrivals", "poisson"),
    ("another load model keeps nothing of them", ["--concurrency", "3"], "phases.1.load.model", "closed"),
    ("the warm-up keeps its load", ["--rate", "5"], "phases.0.load.shapes.0.start", 2),
    ("a cap beside the file's rate", ["--max-in-flight", "7"], "phases.1.load.max_in_flight", 7),
    ("a duration of what is measured", ["--duration", "9s"], "phases.1.duration_ns", 9 * S),
    ("the warm-up keeps its duration", ["--duration", "9s"], "phases.0.duration_ns", S),
    ("a number of requests", ["--requests", "9"], "phases.1.requests", 9),
    ("retries keep the backoff", ["--retries", "0"], "retry.backoff_ns", S),
    ("no retries", ["--retries", "0"], "retry.attempts", 1),
    ("objectives replace the file's", ["--slo", "error_rate <= 1"], "slo", ("error_rate <= 1",)),
    ("pins where the file has a number alone", ["--no-pin"], "workers.count", 2),
    ("exports replace the file's", ["--export", "influxdb://h"], "export.0.kind", "influxdb"),
    ("a folder, the others stay", ["--out", "x"], "output.records", False),
    ("a seed", ["--seed", "2"], "seed", 2),
    ("the simulator for a target: no key", ["--simulate"], "targets.0.api_key", None),
    ("the simulator for a target: its model stays", ["--simulate"], "targets.0.model", "m"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> Path:
    path = tmp_path_factory.mktemp("options") / "weekly.yaml"
    path.write_text(FILE.replace("FILE", files["FILE"]))
    return path


@pytest.mark.parametrize(("why", "arguments", "attribute", "value"), OVERRIDES, ids=[row[0] for row in OVERRIDES])
def test_a_flag_wins_over_the_file_and_leaves_the_rest(
    why: str, arguments: list[str], attribute: str, value: Any, plan_file: Path
) -> None:
    assert at(planned(*arguments, path=plan_file), attribute) == value


def test_a_run_is_named_after_its_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "weekly.yaml"
    path.write_text("target: {base_url: 'http://h', model: m}\n")
    assert planned(path=path).name == "weekly"
    assert planned(*BASE).name == "run"


WRONG: list[tuple[str, list[str], str]] = [
    ("a rate below 0", ["--rate", "-5"], r"rate must be > 0, got '-5' \(--rate\)"),
    ("a rate that is none", ["--rate", "fast"], r"rate is not understood: .* got 'fast' \(--rate\)"),
    ("no clients", ["--concurrency", "0"], r"concurrency must be >= 1, got '0' \(--concurrency\)"),
    ("both loads", ["--concurrency", "1", "--rate", "5"], "--concurrency .* and --rate .* cannot both be given"),
    ("arrivals in closed loop", ["--concurrency", "1", "--arrivals", "poisson"], r"is for open loop .*\(--arrivals\)"),
    ("arrivals of nothing", ["--arrivals", "poisson"], r"arrivals needs rate, .*\(--arrivals\)"),
    ("overflow alone", ["--rate", "1", "--overflow", "drop"], r"max_in_flight, which is missing.*\(--overflow\)"),
    ("two prompts", ["--prompt", "a", "--prompts", "b"], "--prompt and --prompts cannot both be given"),
    ("a file that is missing", ["--prompts", "no.jsonl"], r"does not exist, got 'no.jsonl' \(--prompts\)"),
    ("a duration without sense", ["--duration", "5 parsecs"], r"\(--duration\)"),
    ("no time", ["--timeout", "0s"], r"timeout must be > 0, got '0s' \(--timeout\)"),
    ("retries below 0", ["--retries", "-1"], r"\(--retries\)"),
    ("retries that are none", ["--retries", "x"], r"\(--retries\)"),
    ("workers that are none", ["--workers", "0"], r"count must be >= 1, got '0' \(--workers\)"),
    ("an SLO", ["--slo", "ttf_ms.p99 <= 1"], r"did you mean 'ttft_ms'\? \(--slo\)"),
    ("an export", ["--export", "kafka://h"], r"export must begin with .*\(--export\)"),
    ("a provider", ["--provider", "opnai"], r"did you mean 'openai'\?.*\(--provider\)"),
    ("a URL", ["--base-url", "h:1"], r"must begin with http:// .*\(--base-url\)"),
    ("a header without colon", ["--header", "hunter2"], "--header must be 'NAME: VALUE'"),
    ("a header's name", ["--header", "X A hunter2: v"], "a header's name is letters"),
    ("a header of two lines", ["--header", "X-A: hunter2\nX: 1"], r"header X-A must be one line .*\(--header\)"),
    ("a variable that is not set", ["--api-key-env", "NONE"], r"NONE is not set \(--api-key-env\)"),
    ("a key for a variable", ["--api-key-env", "sk-hunter2"], r"not the key \(--api-key-env\)"),
    ("a file of no key", ["--api-key-file", "none.txt"], r"cannot be read: .*\(--api-key-file\)"),
    ("a file for TLS", ["--ca-file", "none.pem"], r"ca_file does not exist, got 'none.pem' \(--ca-file\)"),
    ("a proxy", ["--proxy", "socks5://hunter2@h"], r"proxy must begin with .*\(--proxy\)"),
]


@pytest.mark.parametrize(("why", "arguments", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_flag_is_named(why: str, arguments: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        planned(*BASE, *arguments)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flag_for_one_target_is_refused_where_there_are_two(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("targets: [{base_url: 'http://h', model: m}, {base_url: 'http://g', model: m}]\n")
    with pytest.raises(PlanError, match="--model is for one target, the plan has 2; change the plan instead"):
        planned("--model", "n", path=path)
    assert len(planned("--rate", "5", path=path).targets) == 2


def test_no_target_at_all_says_what_to_give() -> None:
    with pytest.raises(PlanError, match="no target; give --base-url URL --model NAME, --simulate, or targets"):
        planned("--rate", "5")


def test_flags_leave_documents_that_are_no_plan_to_the_planfile() -> None:
    for document in ({"phases": 5}, {"workers": [1]}, {"workload": 3}, {"limits": "x"}, {"output": None}):
        apply_flags(dict(document), Source(), flags("--rate", "5", "--workers", "2", "--prompt", "a", "--out", "x"))
