"""Replies that a real server sends and a strict client loses: each has its outcome, its finish, its retry. Real sockets."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support_lens import accounts, lens
from tests.support_server import DONE, HEAD, REPLY, RESET, USAGE, chunk, event, read_request, scripted

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 13\r\n\r\n<html></html>"
BROTLI_429 = b"HTTP/1.1 429 No\r\nContent-Encoding: br\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nabcd"
CUT_503 = b"HTTP/1.1 503 No\r\nContent-Length: 400\r\n\r\n{"
DAY_429 = b"HTTP/1.1 429 No\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n"


def rows(cwd: Path) -> list[dict[str, Any]]:
    with (cwd / "runs" / "latest" / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def replies(*each: bytes) -> Any:
    """A script that answers each request of a connection with the next of these, then closes."""

    def script(sock: socket.socket, _number: int) -> None:
        for reply in each:
            if not read_request(sock):
                return
            sock.sendall(reply)

    return script


def ran(tmp_path: Path, url: str, *more: str, requests: int = 1) -> Any:
    given = ("--base-url", url, "--model", "m", "--requests", str(requests), "--concurrency", "1", *more)
    return lens("run", "--json", *given, cwd=tmp_path)


# The first connection only looks whether the server is there.
ODD = [
    (PAGE, "stream_malformed", "text/html"),
    (BROTLI_429, "http_rate_limited", "429"),
    (CUT_503, "http_overloaded", "503"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "outcome", "word"), ODD, ids=[row[1] for row in ODD])
def test_an_odd_reply_has_the_outcome_that_says_what_it_was(
    reply: bytes, outcome: str, word: str, tmp_path: Path
) -> None:
    """A login page was `stream_truncated`, and a 429 that nobody could decode was `stream_malformed`."""
    with scripted(replies(reply)) as server:
        ended = ran(tmp_path, server.base_url)
    assert ended.summary["requests"]["failed"][outcome] == 1
    assert word in rows(tmp_path)[0]["message"]


@pytest.mark.slow
def test_a_429_whose_body_cannot_be_decoded_is_tried_again(tmp_path: Path) -> None:
    with scripted(replies(), replies(BROTLI_429), replies(REPLY)) as server:
        ended = ran(tmp_path, server.base_url, "--retries", "1")
    accounts(ended.summary["requests"])
    assert ended.summary["requests"]["ok"] == 1
    assert ended.summary["requests"]["attempts"] == 2


def test_a_retry_after_of_a_day_ends_the_request_at_once(tmp_path: Path) -> None:
    """It used to hold the slot of a closed loop for the day, beyond every time limit."""
    with scripted(replies(DAY_429)) as server:
        ended = ran(tmp_path, server.base_url, "--retries", "3", requests=2)
    assert ended.summary["requests"]["failed"]["http_rate_limited"] == 2
    assert ended.summary["requests"]["attempts"] == 2


@pytest.mark.slow
def test_bytes_after_a_complete_reply_cost_the_connection_and_not_the_reply(tmp_path: Path) -> None:
    with scripted(replies(REPLY + b"junk", REPLY)) as server:
        ended = ran(tmp_path, server.base_url, requests=3)
        assert server.connections == 3 + 1
    assert ended.summary["requests"]["ok"] == 3


@pytest.mark.slow
def test_a_413_under_the_upload_is_what_its_status_says(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "' + "light " * 2_000_000 + '"}\n')

    def script(sock: socket.socket, _number: int) -> None:
        if sock.recv(4096):
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with scripted(script) as server:
        ended = ran(tmp_path, server.base_url, "--prompts", "p.jsonl")
    assert ended.summary["requests"]["failed"]["http_invalid"] == 1


@pytest.mark.slow
def test_every_ok_row_has_its_finish_and_request_id(tmp_path: Path) -> None:
    """They were kept only beside rate-limit headers: 484 of 1,188 rows of a real run had neither."""
    first = b'data: {"id":"chatcmpl-7","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
    reply = HEAD + b"".join(map(chunk, (first, event("a"), event("b", finish="stop"), USAGE, DONE))) + b"0\r\n\r\n"
    with scripted(replies(*[reply] * 50)) as server:
        ended = ran(tmp_path, server.base_url, requests=50)
    assert ended.summary["requests"]["ok"] == 50
    assert {(row["finish"], row["request_id"]) for row in rows(tmp_path)} == {("stop", "chatcmpl-7")}


@pytest.mark.slow
def test_an_overspent_budget_is_named_with_its_amount(tmp_path: Path) -> None:
    """Nothing limits the reply, and the first one costs more than the whole budget."""
    dear = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":50000,"total_tokens":50005}}\n\n'
    reply = HEAD + b"".join(map(chunk, (event("a"), event("b", finish="stop"), dear, DONE))) + b"0\r\n\r\n"
    with scripted(replies(*[reply] * 9)) as server:
        (tmp_path / "plan.yaml").write_text(
            f"target: {{base_url: '{server.base_url}', model: m, price: {{input: 1, output: 10}}}}\n"
            "load: {concurrency: 1}\nrequests: 9\nlimits: {budget_usd: 0.1}\n"
        )
        ended = lens("run", "plan.yaml", "--json", cwd=tmp_path)
    reasons = {reason["code"]: reason["detail"] for reason in ended.summary["verdict"]["reasons"]}
    assert ended.summary["requests"]["ok"] == 1
    assert "0.400005 USD more" in reasons["budget_overrun"]
