"""Against a real LLM server: llama.cpp, whose last chunk carries its own measurements (`timings`)."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from llm_latency_lens.engine.plan.plan import Target
from tests.support_lens import accounts, measured
from tests.support_llama import llama_server
from tests.support_replay import bytewise, played, recorded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(tmp_path_factory.mktemp("llama")) as url:
        yield url


@contextmanager
def overheard(url: str) -> Iterator[tuple[str, list[bytes]]]:
    """A relay in front of `url` that keeps what the server said on each connection; gives its own URL."""
    parts = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    said: list[bytes] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, heard: list[bytes] | None) -> None:
        try:
            while piece := source.recv(1 << 16):
                if heard is not None:
                    heard.append(piece)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((parts.hostname, parts.port)) as upstream:
            for sock in (client, upstream):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard: list[bytes] = []
            up = threading.Thread(target=pump, args=(client, upstream, None))
            up.start()
            pump(upstream, client, heard)
            up.join()
            said.append(b"".join(heard))

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=relay, args=(client,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", said
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)
        for thread in threads:
            thread.join(10)


def timings(said: list[bytes]) -> list[dict[str, Any]]:
    """The `timings` of every reply."""
    return [json.loads(each) for text in said for each in re.findall(rb'"timings":(\{[^}]*\})', text)]


def test_nothing_is_lost_to_a_server_that_closes_after_every_reply(server: str, tmp_path: Path) -> None:
    """llama.cpp closes after each stream: stale connections must be no failures and no latency."""
    summary = measured(
        "--base-url", f"{server}/v1", "--model", "m", "--requests", "120", "--output-tokens", "16", cwd=tmp_path
    )
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 120
    assert summary["tokens"]["output"] == 120 * 16
    assert summary["tokens"]["source"] == "provider"
    assert summary["metrics"]["itl_max_ms"]["max"] < summary["metrics"]["e2e_ms"]["max"]


def test_the_lens_agrees_with_the_timings_of_llama_cpp(server: str, tmp_path: Path) -> None:
    """One request after the other, so that server and lens measure the same intervals."""
    tokens = 64
    with overheard(server) as (url, said):
        summary = measured(
            "--base-url", f"{url}/v1", "--model", "m", "--requests", "40", "--concurrency", "1",
            "--output-tokens", str(tokens), "--prompt", "How fast is light?", cwd=tmp_path,
        )  # fmt: skip
    assert summary["requests"]["ok"] == 40, (summary["requests"], summary["errors"])
    truth = timings(said)
    assert len(truth) == 40
    assert summary["tokens"]["output"] == sum(each["predicted_n"] for each in truth)
    assert summary["tokens"]["input"] == sum(each["prompt_n"] + each["cache_n"] for each in truth)
    metrics = summary["metrics"]
    per_token = float(np.median([each["predicted_per_token_ms"] for each in truth]))
    assert metrics["tpot_ms"]["p50"] == pytest.approx(per_token, rel=0.1)
    # Tokens that came in one segment have no gap of their own: those kept add up to the same time.
    shared = summary["client"]["itl_coalesced_share"]
    assert metrics["itl_ms"]["mean"] * (1 - shared) == pytest.approx(
        float(np.mean([each["predicted_per_token_ms"] for each in truth])), rel=0.2
    )
    # llama.cpp's prompt_ms is the prefill alone; the lens' TTFT adds HTTP, tokenising and the first token's sampling.
    # The fastest request shows that sum; what the others waited for a CPU is the machine's.
    prefill = [each["prompt_ms"] for each in truth]
    assert float(np.median(prefill)) <= metrics["ttft_ms"]["p50"]
    assert min(prefill) <= metrics["ttft_ms"]["min"] <= min(prefill) + per_token + 5


@pytest.mark.parametrize(
    ("provider", "path"),
    [("openai", "/v1"), ("openai-completions", "/v1"), ("openai-responses", "/v1"), ("anthropic", "")],
)
def test_its_bytes_are_read_the_same_however_they_are_cut(provider: str, path: str, server: str) -> None:
    target = Target(name="t", provider=provider, base_url=server + path, model="m")
    raw = recorded(target)
    whole = played(target, [raw])
    assert whole.finished
    assert whole.tokens == whole.output == 8
    assert played(target, bytewise(raw)) == whole
    for cut in range(1, len(raw), 11):
        assert played(target, [raw[:cut], raw[cut:]]) == whole
