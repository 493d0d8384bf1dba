"""Whose time a request took: the round trip and the retransmissions by the kernel, the provider's own word, and the rest."""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from llm_latency_lens.engine.dialects import OK, Reply
from llm_latency_lens.engine.dialects.openai import ChatReply
from llm_latency_lens.engine.dialects.openai_completions import CompletionReply
from llm_latency_lens.engine.dialects.openai_responses import ResponseReply
from llm_latency_lens.engine.dialects.outcomes import provider_us
from llm_latency_lens.engine.records.record import UNKNOWN
from tests.support_lens import LENS, measured
from tests.support_llama import llama_server
from tests.support_netns import Host, delay_link, needs_tun
from tests.support_server import REPLY, answer, scripted
from tests.support_simulator import simulator

DELAY_MS = 10.0
TTFT_MS = 30  # below the 40 ms of a delayed acknowledgement: the worst for a smoothed round-trip time


def rows(cwd: Path) -> list[dict[str, Any]]:
    with (cwd / "runs" / "latest" / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def over(link: AbstractContextManager[tuple[Host, Host]], cwd: Path) -> dict[str, Any]:
    """The summary of a run from one end of the link against the simulator on the other."""
    cwd.mkdir()
    with (
        link as (server, client),
        simulator(flags=("--host", server.address), wrapper=server.wrapper, ttft_ms=TTFT_MS, itl_ms=1, tokens=5) as sim,
    ):
        load = ["--concurrency", "2", "--requests", "60", "--workers", "1", "--json"]
        command = [*client.wrapper, *LENS, "run", "--base-url", f"{sim.base_url}/v1", "--model", "m", *load]
        ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    summary: dict[str, Any] = json.loads(ended.stdout)
    return summary


@pytest.mark.slow
@needs_tun
def test_a_slow_network_is_the_networks_and_not_the_servers(tmp_path: Path) -> None:
    """20 ms of link are 20 ms of rtt_ms, on kept-alive connections too, and leave the server's part as it was."""
    near = over(delay_link(delay_ms=0), tmp_path / "near")
    far = over(delay_link(delay_ms=DELAY_MS), tmp_path / "far")
    rtt = far["metrics"]["rtt_ms"]
    assert rtt["count"] == 60
    assert rtt["min"] == pytest.approx(2 * DELAY_MS, abs=1)
    assert rtt["max"] == pytest.approx(2 * DELAY_MS, abs=1)
    assert near["metrics"]["rtt_ms"]["max"] < 5
    parts = [run["metrics"]["server_ttft_ms"]["p50"] for run in (near, far)]
    assert parts[1] == pytest.approx(parts[0], abs=1)
    assert far["metrics"]["ttft_ms"]["p50"] == pytest.approx(parts[1] + 2 * DELAY_MS, abs=1)
    assert far["requests"]["tcp_retransmits"] == 0


@pytest.mark.slow
@needs_tun
def test_segments_sent_again_are_counted_of_the_request_that_needed_them(tmp_path: Path) -> None:
    """A TTFT of 300 ms on a lossy link is explained by its own row, not by a counter of the complete host."""
    summary = over(delay_link(delay_ms=1, loss=0.1), tmp_path / "lossy")
    found = rows(tmp_path / "lossy")
    assert summary["requests"]["tcp_retransmits"] == sum(row["tcp_retransmits"] for row in found) > 0
    assert any(row["tcp_retransmits"] == 0 for row in found)


def test_what_nobody_measured_is_null_and_not_zero(tmp_path: Path) -> None:
    """A slot that was not sent has no round-trip time, and a provider that says nothing took no known time."""
    with simulator(ttft_ms=200, itl_ms=1, tokens=2) as sim:
        load = ["--rate", "20", "--max-in-flight", "1", "--overflow", "drop", "--requests", "10"]
        summary = measured("--base-url", f"{sim.base_url}/v1", "--model", "m", *load, cwd=tmp_path)
    found = rows(tmp_path)
    unsent = [row for row in found if row["outcome"] == "unsent"]
    assert unsent
    for row in unsent:
        assert [row[name] for name in ("rtt_ms", "server_ttft_ms", "provider_ms", "tcp_retransmits")] == [None] * 4
    assert summary["metrics"]["rtt_ms"]["count"] == summary["requests"]["ok"] == len(found) - len(unsent)
    assert (summary["metrics"]["provider_ms"]["count"], summary["metrics"]["provider_ms"]["p50"]) == (0, None)


def test_the_providers_own_headers_are_read(tmp_path: Path) -> None:
    """The provider's word is kept as it is, in ms, from the header that it sends."""
    reply = REPLY.replace(b"\r\n\r\n", b"\r\nopenai-processing-ms: 17\r\n\r\n", 1)

    def serve(sock: socket.socket, _number: int) -> None:
        while answer(sock, reply):
            pass

    with scripted(serve) as server:
        measured("--base-url", server.base_url, "--model", "m", "--requests", "3", cwd=tmp_path)
    assert [row["provider_ms"] for row in rows(tmp_path)] == [17.0] * 3


@pytest.mark.parametrize(
    ("headers", "us"),
    [
        ({}, UNKNOWN),
        ({b"openai-processing-ms": b"12"}, 12_000),
        ({b"x-envoy-upstream-service-time": b"0"}, 0),
        ({b"openai-processing-ms": b"12", b"x-envoy-upstream-service-time": b"14"}, 12_000),
        ({b"openai-processing-ms": b"soon", b"x-envoy-upstream-service-time": b"14"}, 14_000),
        ({b"openai-processing-ms": b"-1"}, UNKNOWN),
        ({b"openai-processing-ms": b"nan"}, UNKNOWN),
        ({b"openai-processing-ms": b"1e300"}, UNKNOWN - 1),
    ],
)
def test_a_header_that_is_no_time_is_no_time(headers: dict[bytes, bytes], us: int) -> None:
    """Servers send anything; 0 ms is a time, and no header is not 0 ms."""
    assert provider_us(headers) == us


USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2}'
TIMINGS = b'"timings":{"prompt_n":3,"prompt_ms":1.468,"predicted_ms":0.8}'


@pytest.mark.parametrize(
    ("reply", "events"),
    [
        (
            ChatReply(),
            [b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', b'{"choices":[],' + USAGE + b"," + TIMINGS + b"}"],
        ),
        (ChatReply(), [b'{"choices":[{"delta":{},"finish_reason":"stop"}],' + TIMINGS + b"}"]),
        (CompletionReply(), [b'{"choices":[{"text":"","finish_reason":"stop"}],' + USAGE + b"," + TIMINGS + b"}"]),
        (
            ResponseReply(),
            [b'{"type":"response.completed","response":{"status":"completed","output":[]},' + TIMINGS + b"}"],
        ),
    ],
    ids=["chat, with usage", "chat, without", "completions", "responses"],
)
def test_the_servers_own_timings_are_read_where_it_puts_them(reply: Reply, events: list[bytes]) -> None:
    """llama.cpp sends them in the last chunk, beside the usage or the finish reason; their fractions matter."""
    for each in events:
        reply.event(each)
    assert (reply.provider_us, reply.outcome) == (1468, OK)


@pytest.mark.slow
def test_the_parts_of_a_real_server_add_up_to_the_first_token(tmp_path: Path) -> None:
    """llama.cpp measures its own prompt: with the round trip it makes our TTFT, and neither can hide the other's error."""
    with llama_server(tmp_path) as url:
        measured(
            "--provider", "openai-completions", "--base-url", f"{url}/v1", "--model", "m", "--requests", "40",
            "--concurrency", "1", "--input-tokens", "60", "--output-tokens", "4", cwd=tmp_path,
        )  # fmt: skip
    found = rows(tmp_path)
    assert len(found) == 40
    left = sorted((row["ttft_ms"] - row["rtt_ms"] - row["provider_ms"]) / row["ttft_ms"] for row in found)
    assert left[0] > -0.01, "the server cannot have taken longer than we waited"
    assert left[len(left) // 2] < 0.5
