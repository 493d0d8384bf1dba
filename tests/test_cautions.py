"""What a run says before it sends: nothing limits the output, a file overrules the plan; and what its salt does."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_latency_lens.engine.plan.plan import Length, Workload
from llm_latency_lens.engine.workload import cautions
from tests.support_collector import plan
from tests.support_lens import lens
from tests.support_server import REPLY, read_request, scripted

FIXED = Length(kind="fixed", mean=9)


def said(workload: dict[str, Any] | None = None, **target: Any) -> list[str]:
    (given,) = plan().targets
    made = msgspec.structs.replace(
        plan(),
        workload=Workload(**workload or {}),
        targets=(msgspec.structs.replace(given, **target),),
    )
    return cautions(made)


UNLIMITED: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("nothing at all", {}, {}, True),
    ("made-up prompts", {"kind": "synthetic", "input_tokens": FIXED}, {}, True),
    ("the plan", {"output_tokens": FIXED}, {}, False),
    ("the target's parameters", {}, {"parameters": {"max_tokens": 5}}, False),
    ("nested parameters", {}, {"parameters": {"generationConfig": {"maxOutputTokens": 5}}}, False),
    ("other parameters", {}, {"parameters": {"temperature": 0}}, True),
    ("the dialect's own limit", {}, {"provider": "anthropic"}, False),
]


@pytest.mark.parametrize(("why", "workload", "target", "warned"), UNLIMITED, ids=[row[0] for row in UNLIMITED])
def test_a_plan_that_limits_no_output_is_warned_about(
    why: str, workload: dict[str, Any], target: dict[str, Any], warned: bool
) -> None:
    """A first run without a limit paid for 100 replies of 8,131 tokens."""
    assert [line.split(":")[0] for line in said(workload, **target)] == [
        "nothing limits the output of target-0"
    ] * warned


def test_rows_with_a_limit_of_their_own_are_named_where_the_plan_has_one_too(tmp_path: Path) -> None:
    """`--output-tokens 50` over a file whose rows ask for 2,000 changed nothing, and nothing said so."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "output_tokens": 2000}\n')
    assert said({"kind": "file", "path": str(rows)}) == []
    (line,) = said({"kind": "file", "path": str(rows), "output_tokens": FIXED})
    assert str(rows) in line
    rows.write_text('{"prompt": "a"}\n')
    assert said({"kind": "file", "path": str(rows), "output_tokens": FIXED}) == []


def prompts_of(tmp_path: Path, *flags: str) -> tuple[list[str], str]:
    """(the prompts that a server received in order, stderr) of `lens run` with three synthetic prompts."""

    bodies: list[dict[str, Any]] = []

    def serve(sock: socket.socket, _number: int) -> None:
        while request := read_request(sock):
            bodies.append(json.loads(request.partition(b"\r\n\r\n")[2]))
            sock.sendall(REPLY)

    with scripted(serve) as server:
        load = ("--concurrency", "1", "--workers", "1", "--requests", "3", "--input-tokens", "40", "--seed", "5")
        ended = lens("run", "--json", "--base-url", server.base_url, "--model", "m", *load, *flags, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    return [body["messages"][-1]["content"] for body in bodies], ended.stderr


@pytest.mark.slow
def test_the_same_command_twice_shares_no_beginning_of_a_prompt(tmp_path: Path) -> None:
    """The second run measured the first one's prefix cache: TTFT p50 17 ms became 4, both VALID."""
    first, warned = prompts_of(tmp_path)
    second, _ = prompts_of(tmp_path, "--output-tokens", "9")
    assert "nothing limits the output" in warned
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert one.split()[0] != other.split()[0] or one.split()[1] != other.split()[1]
        assert len(one.split()) == len(other.split())
    (tmp_path / "plan.yaml").write_text("workload: {salt: none}\n")
    unsalted = [prompts_of(tmp_path, "--output-tokens", "9", "plan.yaml")[0] for _ in range(2)]
    assert unsalted[0] == unsalted[1]
