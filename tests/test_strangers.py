"""Mock servers that nobody here wrote: every well-formed reply is ok with its tokens, every fault has its outcome.

One run, one plan, all of them side by side: streamed and whole, OpenAI, Anthropic and Google.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import pytest

from llm_latency_lens.engine.plan.plan import Target
from tests.support_databases import answers, free_port
from tests.support_lens import accounts, lens
from tests.support_replay import bytewise, played, recorded

pytestmark = pytest.mark.slow

FAKELLM = """
rules:
  - {name: limited, when: {model_matches: limited}, respond: {status: 429, error: slow down}}
  - {name: broken, when: {model_matches: broken}, respond: {status: 500, error: broken}}
  - {name: tool, when: {model_matches: tool}, respond: {tool_calls: [{name: search, arguments: {query: x}}]}}
  - {name: any, when: {messages_contain: hello}, respond: {content: "Hello, how can I help you with this today?"}}
"""
STUBLLM = """
fixtures:
  - name: busy
    match: {provider: any, model: busy, messages: [{role: user, content: {contains: hello}}]}
    response: {http_status: 503, error_message: busy}
  - name: hello
    match: {provider: any, messages: [{role: user, content: {contains: hello}}]}
    response:
      content: "Hello! How can I help you today?"
      usage: {prompt_tokens: 10, completion_tokens: 12, total_tokens: 22}
"""
STATUSES = {
    "mock-400": "http_invalid",
    "mock-401": "http_auth",
    "mock-429": "http_rate_limited",
    "mock-500": "http_server",
    "mock-503": "http_overloaded",
}


class Row(NamedTuple):
    """One target: what is asked of whom, its outcome, and the output tokens of one reply (None: not looked at)."""

    server: str
    provider: str
    model: str = "m"
    outcome: str = "ok"
    streamed: int | None = None
    whole: int | None = None
    source: str = "provider"


ROWS = [
    Row("fakellm", "openai", streamed=9, whole=10, source="events"),
    Row("fakellm", "anthropic", streamed=10, whole=10),
    Row("fakellm", "openai", "tool", source="events"),
    Row("fakellm", "anthropic", "tool"),
    Row("fakellm", "openai", "limited", "http_rate_limited"),
    Row("fakellm", "anthropic", "broken", "http_server"),
    Row("stubllm", "openai", streamed=10, whole=12, source="events"),
    Row("stubllm", "anthropic", whole=12),
    Row("stubllm", "google", streamed=10, whole=12, source="events"),
    Row("stubllm", "openai", "busy", "http_overloaded"),
    Row("stubllm", "google", "busy", "http_overloaded"),
    Row("llm-mock-api", "openai", streamed=5, whole=5),
    Row("llm-mock-api", "anthropic", streamed=5, whole=5),
    Row("llm-mock-api", "openai-responses", streamed=5, whole=5),
    Row("mock-ai-api", "openai", "gpt-4.1:mock-text", streamed=12, whole=12),
    Row("mock-ai-api", "openai-completions", "gpt-4.1:mock-text", streamed=12, whole=12),
    Row("mock-ai-api", "openai-responses", "gpt-4.1:mock-text", streamed=12, whole=12),
    Row("mock-ai-api", "openai", "gpt-4.1:mock-tool-stream", streamed=18, whole=18),
    Row("mock-ai-api", "openai", "gpt-4.1:mock-bad-tool-json", streamed=10, whole=18),
    *(Row("mock-ai-api", "openai", f"gpt-4.1:{name}", outcome) for name, outcome in STATUSES.items()),
    Row("mock-ai-api-anthropic", "anthropic", "claude:mock-text", streamed=12, whole=12),
    Row("mock-ai-api-anthropic", "anthropic", "claude:mock-anthropic-stream", streamed=12, whole=12),
    Row("mock-ai-api-anthropic", "anthropic", "claude:mock-tool-use", streamed=14, whole=14),
    Row("mock-ai-api-anthropic", "anthropic", "claude:mock-tool-stream", streamed=14, whole=14),
    *(Row("mock-ai-api-anthropic", "anthropic", f"claude:{name}", outcome) for name, outcome in STATUSES.items()),
]
STREAM_ERROR = Row("mock-ai-api-anthropic", "anthropic", "claude:mock-stream-error", "stream_error")
PATHS = {"openai": "/v1", "openai-completions": "/v1", "openai-responses": "/v1"}


@contextmanager
def served(command: list[str], page: str, folder: Path) -> Iterator[None]:
    """A server while the block runs."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, start_new_session=True)
    try:
        end = monotonic() + 30
        while not answers(page):
            assert process.poll() is None, log.read_text()
            assert monotonic() < end, log.read_text()
            sleep(0.05)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # mock-ai-api serves from children, which would stay
        process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of each server."""
    folder = tmp_path_factory.mktemp("strangers")
    programs = Path(sys.executable).parent
    (folder / "fakellm.yaml").write_text(FAKELLM)
    (folder / "fixtures").mkdir()
    (folder / "fixtures" / "all.yaml").write_text(STUBLLM)
    names = ("fakellm", "stubllm", "llm-mock-api", "mock-ai-api", "mock-ai-api-anthropic")
    ports = {name: str(free_port()) for name in names}
    commands = {
        "fakellm": ["serve", "--port", ports["fakellm"]],
        "stubllm": ["serve", "--port", ports["stubllm"], "--fixture-dir", "fixtures"],
        "llm-mock-api": ["start", "-p", ports["llm-mock-api"], "-f", "Hello there from the mock", "-c", "5"],
        "mock-ai-api": [
            "--openai-port", ports["mock-ai-api"], "--anthropic-port", ports["mock-ai-api-anthropic"]
        ],
    }  # fmt: skip
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    with ExitStack() as stack:
        for name, arguments in commands.items():
            stack.enter_context(served([str(programs / name), *arguments], f"{urls[name]}/", folder))
        yield urls


@pytest.fixture(scope="module")
def reported(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of one run over all rows, streamed and whole."""
    folder = tmp_path_factory.mktemp("run")
    targets = [
        {
            "name": name_of(row, stream),
            "provider": row.provider,
            "base_url": servers[row.server] + PATHS.get(row.provider, ""),
            "model": row.model,
            "stream": stream,
        }
        for row, stream in cases()
    ]
    plan = {
        "targets": targets,
        "workload": {"prompt": "hello there", "output_tokens": 64},
        "load": {"concurrency": 8},
        "requests": 8 * len(targets),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    ended = lens("run", "plan.json", "--json", cwd=folder)
    assert ended.code == 0, ended.stderr
    return ended.summary


def cases() -> list[tuple[Row, bool]]:
    """Every row streamed and whole. fakellm refuses no stream: it answers with a well-formed one."""
    both = [(row, stream) for row in ROWS for stream in (True, False)]
    return [case for case in both if not (case[1] and case[0].server == "fakellm" and case[0].outcome != "ok")] + [
        (STREAM_ERROR, True)
    ]


def name_of(row: Row, stream: bool) -> str:
    return f"{row.server} {row.provider} {row.model} {'streamed' if stream else 'whole'}"


def test_the_totals_balance(reported: dict[str, Any]) -> None:
    accounts(reported["requests"])
    assert reported["requests"]["sent"] == 8 * len(cases())


@pytest.mark.parametrize(("row", "stream"), cases(), ids=[name_of(*case) for case in cases()])
def test_every_reply_is_what_its_server_meant(row: Row, stream: bool, reported: dict[str, Any]) -> None:
    target = next(each for each in reported["targets"] if each["name"] == name_of(row, stream))
    requests = target["requests"]
    assert requests["sent"] > 0
    if row.outcome != "ok":
        assert requests["failed"] == {row.outcome: requests["sent"]}
        return
    assert requests["ok"] == requests["sent"], [each for each in reported["errors"] if each["target"] == target["name"]]
    assert target["metrics"]["ttft_ms"]["count"] == (
        requests["ok"] if stream else target["metrics"]["ttft_ms"]["count"]
    )
    tokens = row.streamed if stream else row.whole
    if tokens is not None:
        assert target["tokens"]["output"] == tokens * requests["ok"]
        assert target["tokens"]["source"] == (row.source if stream else "provider")


STREAMS = [row for row in ROWS if row.outcome == "ok"]


@pytest.mark.parametrize("row", STREAMS, ids=[name_of(row, True) for row in STREAMS])
def test_its_bytes_are_read_the_same_however_they_are_cut(row: Row, servers: dict[str, str]) -> None:
    """As one read, byte by byte, and cut in two in many places."""
    target = Target(
        name="t", provider=row.provider, base_url=servers[row.server] + PATHS.get(row.provider, ""), model=row.model
    )
    raw = recorded(target)
    whole = played(target, [raw])
    assert whole.finished
    assert whole.tokens > 0
    assert played(target, bytewise(raw)) == whole
    for cut in range(1, len(raw), 7):
        assert played(target, [raw[:cut], raw[cut:]]) == whole
