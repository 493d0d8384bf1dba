"""plan.json of a run directory: complete, without secrets, and a plan file that makes the same run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_latency_lens.engine.plan.written import masked
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from tests.support_lens import lens, measured
from tests.support_simulator import simulator

PLAN = """
target: {{base_url: "{base_url}/v1", model: "${{MODEL}}", api_key_env: MY_KEY, headers: {{X-Team: "${{TEAM}}"}},
          parameters: {{user: "u-${{TEAM}}", session_token: hunter4, max_tokens: 8}}}}
duration: 500ms
load: {{rate: {{from: 5, to: 20}}, arrivals: poisson}}
"""


@pytest.mark.slow
def test_plan_json_runs_again_and_holds_no_secret(tmp_path: Path) -> None:
    """People repeat a run from its directory, and send the directory to others: both must be possible at once."""
    environ = {"MODEL": "sim", "MY_KEY": "sk-hunter2", "TEAM": "hunter3"}
    with simulator(ttft_ms=1, itl_ms=0.1, tokens=4) as provider:
        (tmp_path / "p.yaml").write_text(
            PLAN.format(base_url=provider.base_url).replace("session_token: hunter4, ", "")
        )
        first = measured("p.yaml", cwd=tmp_path, env=environ)
        written = (tmp_path / "runs" / "latest" / "plan.json").read_text()
        (tmp_path / "again.json").write_text(written)
        second = measured("again.json", cwd=tmp_path, env=environ)
        assert (tmp_path / "runs" / "latest" / "plan.json").read_text() == written
        assert first["run"]["plan_sha256"] == second["run"]["plan_sha256"]
        for path in (tmp_path / "runs").rglob("*"):
            if path.is_file():
                assert b"hunter" not in path.read_bytes(), path
        refused = lens("run", "again.json", cwd=tmp_path, env={"MODEL": "sim", "MY_KEY": "x"})
        assert refused.code == 2
        assert "environment variable TEAM is not set (targets[0].headers.X-Team" in refused.stderr


@pytest.mark.slow
def test_a_written_out_secret_is_masked_and_asked_for_again(tmp_path: Path) -> None:
    """A run with `***` for a token would be refused by the provider, and nobody would see why."""
    environ = {"MODEL": "sim", "MY_KEY": "sk-hunter2", "TEAM": "hunter3"}
    with simulator(ttft_ms=1, itl_ms=0.1, tokens=4) as provider:
        (tmp_path / "p.yaml").write_text(PLAN.format(base_url=provider.base_url))
        measured("p.yaml", cwd=tmp_path, env=environ)
    plan = tmp_path / "runs" / "latest" / "plan.json"
    assert "hunter" not in plan.read_text()
    refused = lens("validate", str(plan), cwd=tmp_path, env=environ)
    assert refused.code == 2
    assert "targets[0].parameters.session_token is masked in this file" in refused.stderr


def test_a_number_from_the_environment_is_written_as_it_was(tmp_path: Path) -> None:
    """${T} for one timeout must not become the text of every other value that happens to be equal."""
    target = {"base_url": "http://h", "model": "m", "provider": "${P}"}
    document = {"target": target, "limits": {"timeout": "${T}"}}
    plan = masked(make_plan(document, Source(), {"T": "10s", "P": "openai"}))
    assert (plan["limits"]["timeout"], plan["limits"]["connect_timeout"]) == ("10s", "10s")
    assert plan["targets"][0]["provider"] == "openai"
