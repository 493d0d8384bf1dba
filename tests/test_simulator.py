"""The simulator as a server: what it sends is what its script says, what it logs is what it sent, when it sent it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import trustme

from llm_latency_lens.engine.simulator.providers.provider import text_of
from tests.support_simulator import (
    CHAT,
    FAST,
    Simulator,
    ask,
    chunks_of,
    content_of,
    events_of,
    post,
    row_of,
    simulator,
    start_simulator,
    without_variant,
)


@pytest.fixture(scope="module")
def fast() -> Iterator[Simulator]:
    with simulator(flags=("--log-tokens",), **FAST) as running:
        yield running


def test_every_chunk_carries_the_send_time_that_the_log_has(fast: Simulator) -> None:
    _, headers, body = post(fast, ask(fast))
    row = row_of(fast, headers)
    tokens = [
        chunk["sent_ns"]
        for chunk in chunks_of(body)
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content")
    ]
    assert tokens == row["token_sent_ns"]
    assert all(sent < done for sent, done in zip(tokens, row["token_done_ns"], strict=True))
    assert (tokens[0], tokens[-1]) == (row["first_token_sent_ns"], row["last_token_sent_ns"])
    assert chunks_of(body)[-1]["sent_ns"] == row["end_sent_ns"]


def test_the_log_counts_what_was_sent(fast: Simulator) -> None:
    _, headers, body = post(fast, ask(fast))
    row = row_of(fast, headers)
    expected = {
        "dialect": "openai", "path": CHAT, "model": "m", "stream": True, "fault": "ok", "status": 200, "tokens": 6,
        "token_events": 6, "events": len(events_of(body)), "prompt_tokens": 4, "completed": True, "usage": True,
        "client_closed": False, "late_writes": 0, "finish": "stop",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert content_of(body) == text_of(6)


def test_arrival_is_the_kernels_stamp_and_the_script_counts_from_it(fast: Simulator) -> None:
    before_ns = time.monotonic_ns()
    _, headers, _ = post(fast, ask(fast))
    row = row_of(fast, headers)
    assert row["clock"] == "kernel"
    assert before_ns < row["first_byte_ns"] <= row["arrival_ns"] <= row["head_sent_ns"]
    # Never early: each token is due at arrival + ttft + k x itl.
    for number, sent_ns in enumerate(row["token_sent_ns"]):
        assert sent_ns >= row["arrival_ns"] + 2_000_000 + number * 500_000


def test_a_connection_serves_many_requests_in_order(fast: Simulator) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=20)
    for stream in (True, False, True):
        connection.request("POST", CHAT, json.dumps(ask(fast, stream=stream, max_tokens=2)))
        assert connection.getresponse().read()
    connection.close()
    last = fast.log()[-3:]
    assert [row["turn"] for row in last] == [0, 1, 2]
    assert len({row["connection"] for row in last}) == 1


def test_max_tokens_ends_the_reply_by_length(fast: Simulator) -> None:
    _, _, body = post(fast, ask(fast, max_completion_tokens=3))
    assert content_of(body) == text_of(3)
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks_of(body) if chunk["choices"]]
    assert finishes[-1] == "length"


def test_usage_is_sent_only_where_it_was_asked_for(fast: Simulator) -> None:
    _, _, without = post(fast, ask(fast, stream_options=None))
    _, _, with_usage = post(fast, ask(fast))
    assert not any("usage" in chunk for chunk in chunks_of(without))
    usage = chunks_of(with_usage)[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 6)


BAD_REQUESTS = [
    ("{", 400, "not JSON"),
    ('{"messages": []}', 400, "no model"),
    ('{"model": "m"}', 400, "no messages"),
    ('{"model": "m", "messages": "hi"}', 400, "messages of the wrong type"),
]


@pytest.mark.parametrize(("body", "status", "reason"), BAD_REQUESTS)
def test_a_bad_request_is_refused_in_the_apis_own_form(fast: Simulator, body: str, status: int, reason: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=20)
    connection.request("POST", CHAT, body)
    reply = connection.getresponse()
    assert (reply.status, bool(json.loads(reply.read())["error"]["message"])) == (status, True), reason
    connection.close()


def test_an_unknown_path_is_404_and_bytes_that_are_no_http_are_refused(fast: Simulator) -> None:
    assert post(fast, {}, path="/v9/chat")[0] == 404
    with socket.create_connection(("127.0.0.1", fast.port), timeout=20) as sock:
        sock.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400")


def test_a_request_in_pieces_and_a_large_one_are_read_whole(fast: Simulator) -> None:
    words = "word " * 200_000
    text = json.dumps({"model": "m", "messages": [{"role": "user", "content": words}], "stream": False})
    with socket.create_connection(("127.0.0.1", fast.port), timeout=20) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(text)}\r\n\r\n"
        for piece in (head[:10], head[10:]):
            sock.sendall(piece.encode())
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(text.encode())
        assert b'"prompt_tokens":200000' in sock.recv(65536)


def test_a_client_that_leaves_is_logged_as_gone(fast: Simulator) -> None:
    seen = fast.stats()["client_closed"]
    with socket.create_connection(("127.0.0.1", fast.port), timeout=20) as sock:
        text = json.dumps(ask(fast))
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nx-sim-fault: stall\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()
        )
        assert sock.recv(1000)
    deadline = time.monotonic() + 10
    while fast.stats()["client_closed"] == seen:
        assert time.monotonic() < deadline
    row = fast.log()[-1]
    assert (row["client_closed"], row["completed"], row["fault"]) == (True, False, "stall")


def test_the_pages_answer(fast: Simulator) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=20)
    pages = {}
    for path in ("/healthz", "/v1/models", "/metrics", "/nowhere"):
        connection.request("GET", path)
        reply = connection.getresponse()
        pages[path] = (reply.status, reply.read())
    connection.close()
    assert pages["/healthz"] == (200, b'{"status":"ok"}')
    assert json.loads(pages["/v1/models"][1])["data"][0]["id"] == "sim"
    assert b"vllm:num_requests_running{" in pages["/metrics"][1]
    assert pages["/nowhere"][0] == 404


# What else a script can say.


def test_the_same_seed_gives_the_same_replies_and_another_seed_others() -> None:
    def lengths(seed: int) -> list[int]:
        with simulator(ttft_ms=0, itl_ms=0, tokens="lognormal:20:0.5", seed=seed) as running:
            for _ in range(12):
                post(running, ask(running))
            return [row["tokens"] for row in running.log()]

    assert lengths(1) == lengths(1) != lengths(2)


def test_bursts_share_a_write_and_their_stamp() -> None:
    with simulator(flags=("--log-tokens",), events_per_write=3, ttft_ms=1, itl_ms=1, tokens=7) as running:
        _, headers, body = post(running, ask(running))
        stamps = row_of(running, headers)["token_sent_ns"]
    assert [stamps.count(stamp) for stamp in sorted(set(stamps))] == [3, 3, 1]
    assert content_of(body) == text_of(7)


def test_an_event_may_carry_several_tokens() -> None:
    with simulator(tokens_per_event=4, ttft_ms=1, itl_ms=1, tokens=10, reasoning_tokens=5) as running:
        _, headers, body = post(running, ask(running))
        row = row_of(running, headers)
    assert (row["tokens"], row["reasoning_tokens"], row["token_events"]) == (15, 5, 5)
    assert content_of(body) == text_of(10)
    assert row["first_output_sent_ns"] > row["first_token_sent_ns"]


def test_a_full_server_lets_wait_and_then_refuses() -> None:
    with simulator(concurrency=1, queue=1, ttft_ms=150, itl_ms=0, tokens=1) as running:
        with ThreadPoolExecutor(4) as pool:
            statuses = sorted(reply[0] for reply in pool.map(lambda _: post(running, ask(running)), range(4)))
        rows = sorted((row for row in running.log() if row["status"] == 200), key=lambda row: row["service_ns"])
    assert statuses == [200, 200, 503, 503]
    assert rows[1]["service_ns"] >= rows[0]["end_sent_ns"]
    assert rows[1]["service_ns"] > rows[1]["arrival_ns"]


def test_rpm_and_tpm_are_kept_with_their_headers() -> None:
    with simulator(rpm=60, limit_burst_s=2, **FAST) as running:
        replies = [post(running, ask(running)) for _ in range(3)]
        assert [reply[0] for reply in replies] == [200, 200, 429]
        assert int(replies[2][1]["retry-after"]) >= 1
        assert replies[0][1]["x-ratelimit-limit-requests"] == "60"
        assert running.log()[2]["fault"] == "rpm"
    with simulator(tpm=600, limit_burst_s=1.5, **FAST) as running:  # a request costs 4 + 6 tokens, 15 fit
        assert [post(running, ask(running))[0] for _ in range(2)] == [200, 429]
        assert running.log()[1]["fault"] == "tpm"


def test_a_frozen_server_sends_nothing_and_then_catches_up() -> None:
    with simulator(flags=("--log-tokens",), ttft_ms=10, itl_ms=5, tokens=60, freeze=[[0.1, 0.25]]) as running:
        _, headers, body = post(running, ask(running))
        row = row_of(running, headers)
    first_ns = row["arrival_ns"]
    inside = [sent for sent in row["token_sent_ns"] if first_ns + 105_000_000 < sent < first_ns + 250_000_000]
    assert not inside
    assert content_of(body) == text_of(60)
    assert max(later - earlier for earlier, later in pairwise(row["token_sent_ns"])) >= 140_000_000


def test_a_required_key_is_required_in_any_apis_header() -> None:
    with simulator(flags=("--require-key", "s3cret"), **FAST) as running:
        assert post(running, ask(running))[0] == 401
        for header in ({"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}, {"api-key": "s3cret"}):
            assert post(running, ask(running), headers=header)[0] == 200


def test_connections_are_closed_where_the_script_says_so() -> None:
    with simulator(keep_alive=False, **FAST) as running:
        _, headers, _ = post(running, ask(running))
    assert headers["connection"] == "close"


def test_several_processes_share_port_log_and_counts() -> None:
    with simulator(flags=("--processes", "3"), **FAST) as running:
        children = psutil.Process(running.pid).children()
        with ThreadPoolExecutor(8) as pool:
            assert {reply[0] for reply in pool.map(lambda _: post(running, ask(running)), range(40))} == {200}
        end = time.monotonic() + 20
        while (totals := running.stats())["completed"] < 40:  # counted after the reply's last byte
            assert time.monotonic() < end, totals
            time.sleep(0.02)
        assert (totals["requests"], totals["completed"], totals["processes"]) == (40, 40, 3)
        rows = running.log(40)
        assert len({row["id"] for row in rows}) == 40
    assert len(children) == 2
    assert not any(child.is_running() for child in children)


def test_it_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    flags = ("--certfile", str(tmp_path / "cert.pem"), "--keyfile", str(tmp_path / "key.pem"))
    with simulator(flags=flags, **FAST) as running:
        assert running.base_url.startswith("https://")
        connection = http.client.HTTPSConnection("127.0.0.1", running.port, timeout=20, context=context)
        for stream in (True, False):
            connection.request("POST", CHAT, json.dumps(ask(running, stream=stream)))
            body = connection.getresponse().read()
            complete = "" if stream else json.loads(body)["choices"][0]["message"]["content"]
            assert text_of(6) == (content_of(body) if stream else without_variant(complete))
        connection.close()
        assert [row["clock"] for row in running.log(2)] == ["kernel", "kernel"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_with_everything_logged(tmp_path: Path, number: int) -> None:
    running = start_simulator(tmp_path / "log.jsonl", ttft_ms=60_000)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        text = json.dumps(ask(running))
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        assert sock.recv(1000)
        os.kill(running.pid, number)
        assert running.process.wait(10) == 0
    running.stop()
    rows = running.log()
    assert [(row["completed"], row["client_closed"]) for row in rows] == [(False, False)]


@pytest.mark.slow
def test_it_dies_with_its_parent() -> None:
    code = (
        "import subprocess, sys; command = [sys.executable, '-m', 'llm_latency_lens.engine.simulator'];"
        "p = subprocess.Popen([*command, '--die-with-parent'], stdout=subprocess.PIPE);"
        "p.stdout.readline(); print(p.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        simulated = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        simulated.wait(10)


WRONG = [
    (("--ttft-ms", "gauss:1:2"), "ttft_ms must be a number, uniform:LOW:HIGH"),
    (("--fault", "nope=1"), "faults must be one of ok, 429"),
    (("--fault", "500=0.7", "--fault", "401=0.7"), "add up to <= 1"),
    (("--tokens-per-event", "0"), "tokens_per_event must be >= 1"),
    (("--script", "/nonexistent"), "/nonexistent"),
    (("--certfile", "/nonexistent"), "cannot use certificate"),
    (("--processes", "0"), "processes must be >= 1"),
    (("--log", "/nonexistent/x"), "cannot write the simulator's log"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_a_wrong_flag_is_one_line_that_says_what_is_right(flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "llm_latency_lens.engine.simulator", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_idle_simulator_sleeps() -> None:
    """A timer that fires with nothing due would spin a core beside whatever is being measured."""
    with simulator(ttft_ms=1, itl_ms=1, tokens=3) as sim:
        post(sim, ask(sim))
        process = psutil.Process(sim.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.5)
        assert sum(process.cpu_times()[:2]) - before < 0.2
