"""`lens schema`: what editors know of a plan file and of summary.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.planfile.document import keys_of
from llm_latency_lens.engine.planfile.schema import SECTIONS
from tests.support_lens import lens


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The schema of a plan as the command prints it."""
    schema: dict[str, Any] = json.loads(lens("schema", "plan", cwd=tmp_path_factory.mktemp("schema")).stdout)
    return schema


def test_the_schema_of_a_plan_has_exactly_the_declared_keys(plan: dict[str, Any]) -> None:
    """An editor that knows a key less marks good plans as wrong; one more, and it offers what is refused."""
    parts = {name: set(part["properties"]) for name, part in plan["$defs"].items() if "properties" in part}
    for struct in SECTIONS:
        assert parts[struct.__name__] == set(keys_of(struct)), struct.__name__
        assert plan["$defs"][struct.__name__]["additionalProperties"] is False
        assert plan["$defs"][struct.__name__]["required"] == []


def test_a_schema_says_what_a_key_means_and_may_be(plan: dict[str, Any]) -> None:
    """The text in the editor is the one of REFERENCE.md, and a duration may be written as in the documents."""
    timeout = plan["$defs"]["LimitsKeys"]["properties"]["timeout"]
    assert timeout["description"] == "limit of one request"
    assert timeout["type"] == ["string", "number"]
    jitter = plan["$defs"]["Retry"]["properties"]["jitter"]
    assert (jitter["minimum"], jitter["maximum"]) == (0, 1)


def test_the_schema_of_the_summary_is_of_the_report(tmp_path: Path) -> None:
    """Programs that read summary.json are generated from it."""
    schema = json.loads(lens("schema", "summary", cwd=tmp_path).stdout)
    assert {"run", "verdict", "requests", "metrics", "slo", "client"} <= set(schema["$defs"]["Report"]["properties"])
    assert lens("schema", "nonsense", cwd=tmp_path).code == 2


def test_a_probe_plan_is_described_as_a_probe(tmp_path: Path) -> None:
    """`lens validate` once announced a closed loop of 100 requests for a plan that asks once a minute for months."""
    (tmp_path / "p.yaml").write_text(
        "target: {name: t, base_url: 'http://h', model: m}\n"
        "probe: {every: 1m, jitter: 5s, quiet_hours: '22:00-06:00', alerts: [{when: error_rate > 0.5}]}\n"
    )
    reported = lens("validate", "p.yaml", cwd=tmp_path)
    assert reported.code == 0
    assert "probe t: one request every 60s, up to 5s later, not 22:00-06:00" in reported.stdout
    assert "history: a run every 1h, kept 30d" in reported.stdout
    assert "alert alert-1: error_rate > 0.5" in reported.stdout
    assert "closed loop" not in reported.stdout
