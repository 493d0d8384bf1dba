"""`lens providers`, and the ready plans under examples/ against a simulated server of each kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.dialects.table import DIALECTS
from tests.support_lens import lens, measured
from tests.support_simulator import Simulator, simulator

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT: dict[str, Any] = {"ttft_ms": 2, "itl_ms": 0.5, "tokens": 12, "reasoning_tokens": 2}


def test_every_dialect_is_listed_with_its_key_and_its_limits(tmp_path: Path) -> None:
    listed = json.loads(lens("providers", "--json", cwd=tmp_path).stdout)
    assert [row["provider"] for row in listed] == list(DIALECTS)
    for row in listed:
        assert row["asks"]
        assert row["measures"]
        assert row["limits"]
        assert (row["base_url"] is None) == (row["provider"] in ("azure-openai", "http"))
    table = lens("providers", cwd=tmp_path)
    assert table.code == 0
    for text in (*DIALECTS, "ANTHROPIC_API_KEY", "CO_API_KEY"):
        assert text in table.stdout


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with simulator(**SCRIPT) as started:
        yield started


def environ(running: Simulator) -> dict[str, str]:
    names = ("OLLAMA_URL", "TGI_URL", "PLAIN_URL", "ANTHROPIC_BASE_URL", "GEMINI_BASE_URL", "COHERE_BASE_URL")
    return dict.fromkeys(names, running.base_url) | {"OPENAI_BASE_URL": f"{running.base_url}/v1"}


@pytest.mark.slow
@pytest.mark.parametrize("example", ["ollama", "tgi", "plain-json", "compare"])
def test_an_example_measures_what_the_server_sent(example: str, running: Simulator, tmp_path: Path) -> None:
    before = {row["id"] for row in running.log()}
    summary = measured(str(EXAMPLES / f"{example}.yaml"), cwd=tmp_path, env=environ(running))
    served = [row for row in running.log() if row["id"] not in before]
    requests = summary["requests"]
    assert requests["ok"] == requests["sent"] == requests["planned"] == len(served)
    assert sum(target["requests"]["ok"] for target in summary["targets"]) == requests["ok"]
    for target in summary["targets"]:
        sent = target["requests"]["ok"]
        assert target["tokens"]["output"] == sent * (SCRIPT["tokens"] + SCRIPT["reasoning_tokens"])
        assert target["tokens"]["source"] == "provider"
        timed = 0 if example == "plain-json" else sent  # one whole body has no token times
        assert target["metrics"]["ttft_ms"]["count"] == timed
        assert target["metrics"]["e2e_ms"]["count"] == sent
    if example == "compare":
        assert len(summary["targets"]) == 5
