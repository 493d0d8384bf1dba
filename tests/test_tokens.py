"""Tokens counted locally where the provider says none, and replies kept where the plan says so; else neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support_lens import lens, measured
from tests.support_simulator import simulator

toktok = pytest.importorskip("toktok")
VOCABULARY = "o200k_base"


def plan(folder: Path, url: str, **workload: Any) -> str:
    target = {"base_url": f"{url}/v1", "model": "m", "parameters": {"stream_options": {"include_usage": False}}}
    document = {"target": target, "workload": {"prompt": "hello", **workload}, "requests": 30}
    (folder / "plan.json").write_text(json.dumps(document))
    return "plan.json"


def rows(folder: Path) -> list[dict[str, Any]]:
    with (folder / "runs/latest/requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [3, 200])
def test_without_usage_a_local_tokenizer_counts_if_it_is_asked_to(tokens: int, tmp_path: Path) -> None:
    with simulator(ttft_ms=1, itl_ms=0.2, tokens=tokens) as sim:
        plain = measured(plan(tmp_path, sim.base_url), cwd=tmp_path)
        counted = measured(
            plan(tmp_path, sim.base_url, count_tokens=True, tokenizer=VOCABULARY, keep_replies=True), cwd=tmp_path
        )
    assert plain["tokens"]["source"] == "events"
    assert plain["tokens"]["output"] == 30 * tokens
    assert counted["tokens"]["source"] == "local"
    reported = rows(tmp_path)
    expected = [toktok.batch_count([row["text"]], VOCABULARY, threads=1)[0] for row in reported]
    assert [row["output_tokens"] for row in reported] == expected
    assert all(row["local_tokens"] for row in reported)
    assert counted["tokens"]["output"] == sum(expected)
    assert tokens < 100 or counted["metrics"]["tpot_ms"]["count"] == 30
    assert counted["cost"]["unpriced_requests"] == 30  # a local count is no bill


@pytest.mark.slow
def test_replies_are_kept_only_if_the_plan_says_so(tmp_path: Path) -> None:
    with simulator(ttft_ms=1, itl_ms=0.2, tokens=5) as sim:
        measured(plan(tmp_path, sim.base_url), cwd=tmp_path)
        assert {row["text"] for row in rows(tmp_path)} == {None}
        measured(plan(tmp_path, sim.base_url, keep_replies=True), cwd=tmp_path)
        kept = rows(tmp_path)
    assert all(row["text"] for row in kept)
    assert (tmp_path / "runs/latest").stat().st_mode & 0o077 == 0


def test_counting_needs_a_tokenizer_that_exists(tmp_path: Path) -> None:
    for given, message in (({}, "needs a tokenizer"), ({"tokenizer": "nonsense"}, "neither a tokenizer.json nor a")):
        file = plan(tmp_path, "http://127.0.0.1:1", count_tokens=True, **given)
        ended = lens("validate", file, cwd=tmp_path)
        assert ended.code == 2
        assert message in ended.stderr
