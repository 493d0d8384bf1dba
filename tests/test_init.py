"""`lens init`: the plans it writes are right as they stand, and nothing of the user's is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llm_latency_lens.cli.init import TEMPLATES, plan_text
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.reading import read_document
from tests.support_databases import free_port
from tests.support_lens import lens, measured
from tests.support_simulator import FAST, simulator

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AZURE_OPENAI_API_KEY", "CO_API_KEY")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_written_plan_is_valid(name: str, tmp_path: Path) -> None:
    """Also with every line in use that is only proposed in a comment."""
    text = plan_text(name, TEMPLATES[name], None, None, "plan.yaml")
    environ = dict.fromkeys(KEYS, "k") | {"INFLUX_TOKEN": "t"}
    proposed = text.replace("# api_version", "api_version")
    for part in ("  # - {name", "# slo:", "#   - ", "# export:", "#   influxdb", "#   prometheus"):
        proposed = proposed.replace(part, part.replace("# ", "", 1).replace("#   ", "  "))
    for number, each in enumerate((text, proposed)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(each)
        document, source = read_document(str(path))
        plan = make_plan(document, source, environ, default_name="x")
        assert len(plan.slo) == len(plan.export) + number == 3 * number
        assert len(plan.phases) == 2 + 3 * number
        assert (plan.limits.budget_usd is not None) == (TEMPLATES[name].hosted and name != "azure")


def test_a_plan_for_a_url_names_the_model_that_is_served_there(tmp_path: Path) -> None:
    """Written, validated and run without an edit."""
    with simulator(**FAST, models=["org/model:7b"]) as sim:
        written = lens("init", sim.base_url, "plan.yaml", cwd=tmp_path)
        assert written.code == 0, written.stderr
        plan = (tmp_path / "plan.yaml").read_text()
        assert yaml.safe_load(plan)["target"]["model"] == "org/model:7b"
        again = lens("init", sim.base_url, "plan.yaml", cwd=tmp_path)
        assert (again.code, "exists and is left alone" in again.stderr) == (2, True)
        assert (tmp_path / "plan.yaml").read_text() == plan
        validated = lens("validate", "plan.yaml", cwd=tmp_path)
        assert validated.code == 0, validated.stderr
        (tmp_path / "plan.yaml").write_text(plan.replace("duration: 60s", "duration: 0.5s"))
        summary = measured("plan.yaml", cwd=tmp_path)
    assert summary["requests"]["ok"] == summary["requests"]["sent"] > 0
    assert summary["targets"][0]["model"] == "org/model:7b"


def test_a_plan_can_be_written_before_its_server_runs(tmp_path: Path) -> None:
    """- is stdout, and the model is left for the user to fill in."""
    written = lens("init", f"http://127.0.0.1:{free_port()}", "-", cwd=tmp_path)
    assert written.code == 0
    assert yaml.safe_load(written.stdout)["target"]["model"] == "my-model"
    named = lens("init", "vllm", "-", "--model", 'a"b', cwd=tmp_path)
    assert yaml.safe_load(named.stdout)["target"]["model"] == 'a"b'
    assert not list(tmp_path.iterdir())
    listed = lens("init", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(TEMPLATES)
    wrong = lens("init", "vlm", cwd=tmp_path)
    assert (wrong.code, "did you mean vllm" in wrong.stderr) == (2, True)
    assert lens("init", "openai", "no/such/folder.yaml", cwd=tmp_path).code == 1


def test_validate_forecasts_what_a_run_then_sends(tmp_path: Path) -> None:
    """Requests and tokens of the forecast are those of the run; the cost is an upper bound of what it costs."""
    with simulator(**FAST) as sim:
        (tmp_path / "p.yaml").write_text(
            json.dumps(
                {
                    "target": {"base_url": f"{sim.base_url}/v1", "model": "m", "price": {"input": 1, "output": 2}},
                    "workload": {"synthetic": {"input_tokens": {"uniform": [50, 150]}, "output_tokens": 6}},
                    "phases": [{"requests": 40, "load": {"concurrency": 4}}],
                }
            )
        )
        validated = lens("validate", "p.yaml", "--json", cwd=tmp_path)
        assert validated.code == 0, validated.stderr
        summary = measured("p.yaml", cwd=tmp_path)
    expected = json.loads(validated.stdout)["forecast"]
    assert expected["requests"] == summary["requests"]["sent"] == 40
    assert expected["output_tokens"] == summary["tokens"]["output"] == 240
    assert 0.7 < expected["input_tokens"] / summary["tokens"]["input"] < 1.4  # estimated without a tokenizer
    asked = expected["request"]
    assert asked["cost_usd"] == pytest.approx((asked["input_tokens"] + 2 * 6) / 1e6)
    assert expected["cost_usd"] == pytest.approx(40 * asked["cost_usd"])


def test_validate_says_per_day_what_a_probe_costs(tmp_path: Path) -> None:
    """A probe runs for months: its price tag is the day's, quiet hours left out."""
    (tmp_path / "p.yaml").write_text(
        "target: {name: t, base_url: 'http://h', model: m, price: {input: 1, output: 2}}\n"
        "workload: {prompt: hello, output_tokens: 100}\n"
        "limits: {rpm: 30}\nretry: {attempts: 3}\n"
        "probe: {every: 1m, quiet_hours: ['22:00-06:00', '05:00-07:00'], daily_budget_usd: 2}\n"
    )
    reported = lens("validate", "p.yaml", cwd=tmp_path)
    assert reported.code == 0, reported.stderr
    assert "requests: 900 a day" in reported.stdout  # 15 of 24 hours
    assert "at most 90,000 out a day" in reported.stdout
    assert "workload: one prompt for all, 'hello'; at most 100 output tokens" in reported.stdout
    assert "30 requests a minute" in reported.stdout
    assert "retry: up to 3 attempts" in reported.stdout
    assert "at most 2 USD a day" in reported.stdout
