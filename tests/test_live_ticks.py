"""A tick shows what happened in it: one long stream with a stall, by real processes, up to and over their SIGKILLs.

The truth is the server's own clock at each token it sent; the only tolerance is a token on the edge of a tick.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.support_lens import finish, manifest_of, running
from tests.support_server import DONE, HEAD, Scripted, chunk, event, read_request, scripted

pytestmark = pytest.mark.slow

RATE = 50  # tokens/s
TOKENS = 300
STALL_AFTER, STALL_S = 150, 2.0
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":300,"total_tokens":305}}\n\n'


@contextmanager
def stalling() -> Iterator[tuple[Scripted, list[int]]]:
    """A server that streams 300 tokens at 50/s and sends nothing for 2 s after half of them; with the Unix time of each."""
    sent: list[int] = []

    def script(sock: socket.socket, _number: int) -> None:
        if not read_request(sock):
            return
        sock.sendall(HEAD)
        due_s = monotonic()
        for token in range(TOKENS):
            due_s += 1 / RATE + (STALL_S if token == STALL_AFTER else 0)
            sleep(max(0.0, due_s - monotonic()))
            sent.append(time.time_ns())
            sock.sendall(chunk(event("a")))
        sock.sendall(b"".join(map(chunk, (event(finish="stop"), USAGE, DONE))) + b"0\r\n\r\n")
        while read_request(sock):
            pass

    with scripted(script) as server:
        yield server, sent


def arguments(server: Scripted) -> tuple[str, ...]:
    return ("--base-url", server.base_url, "--model", "m", "--concurrency", "1", "--requests", "1")


def ticks(cwd: Path) -> list[dict[str, Any]]:
    path = cwd / "runs" / "latest" / "intervals.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_tick(cwd: Path, number: int) -> None:
    deadline = monotonic() + 30
    while len(ticks(cwd)) <= number:
        assert monotonic() < deadline, "no ticks"
        sleep(0.02)


def shown(found: list[dict[str, Any]]) -> list[float]:
    """Output tokens of each tick."""
    return [tick["intervals"][0]["throughput"]["output_tokens_per_s"] * tick["seconds"] for tick in found]


def truth(found: list[dict[str, Any]], sent: list[int]) -> list[int]:
    """How many tokens the server sent in each tick."""
    ends = [tick["wall_time_ns"] for tick in found]
    return [sum(end - 10**9 <= at < end for at in sent) for end in ends]


def test_each_tick_of_a_stream_shows_its_own_tokens_and_the_stall(tmp_path: Path) -> None:
    """A stall in a ten-minute stream must be seen when it is there, and not ten minutes later."""
    with stalling() as (server, sent), running(*arguments(server), cwd=tmp_path) as process:
        summary = finish(process).summary
    found = ticks(tmp_path)
    counts, expected = shown(found), truth(found, sent)
    assert all(abs(count - right) <= 1 for count, right in zip(counts, expected, strict=True)), (counts, expected)
    assert sum(counts) == TOKENS == summary["tokens"]["output"]
    assert counts.count(0) >= 1
    live = [tick for tick in found if tick["state"] != "done"]
    assert [tick["in_flight"] for tick in live] == [1] * len(live)
    assert {tick["sent_total"] for tick in live} == {1}
    longest = [tick["intervals"][0]["metrics"]["itl_ms"]["max"] or 0 for tick in found]
    [stalled] = [number for number, gap in enumerate(longest) if gap > 1000]
    resumed = next(number for number, tick in enumerate(found) if tick["wall_time_ns"] > sent[STALL_AFTER])
    assert stalled == resumed
    assert longest[stalled] == pytest.approx(1000 * STALL_S + 1000 / RATE, rel=0.02)
    assert [tick["intervals"][0]["metrics"]["ttft_ms"]["count"] for tick in found] == [1] + [0] * (len(found) - 1)


def test_a_killed_collector_shows_every_tick_as_it_was(tmp_path: Path) -> None:
    """Its successor reads the ticks that passed meanwhile from the worker's rows."""
    with stalling() as (server, sent), running(*arguments(server), cwd=tmp_path) as process:
        wait_for_tick(tmp_path, 1)
        _, manifest = manifest_of(tmp_path)
        os.kill(manifest["pids"]["collector"], signal.SIGKILL)
        summary = finish(process).summary
    found = ticks(tmp_path)
    counts, expected = shown(found), truth(found, sent)
    assert all(abs(count - right) <= 1 for count, right in zip(counts, expected, strict=True)), (counts, expected)
    assert [tick["tick"] for tick in found] == list(range(len(found)))
    assert sum(counts) == TOKENS
    assert summary["client"]["collector_restarts"] == 1


def test_a_killed_worker_takes_no_token_with_it(tmp_path: Path) -> None:
    """Its request is lost, and the ticks still have all that had arrived."""
    with stalling() as (server, sent), running(*arguments(server), cwd=tmp_path) as process:
        wait_for_tick(tmp_path, 1)
        _, manifest = manifest_of(tmp_path)
        os.kill(manifest["pids"]["worker-0"], signal.SIGKILL)
        killed_ns = time.time_ns()
        summary = finish(process).summary
    assert summary["requests"]["failed"] == {"lost": 1}
    arrived = [at for at in sent if at < killed_ns]
    found = ticks(tmp_path)
    counts, expected = shown(found), truth(found, arrived)
    assert all(abs(count - right) <= 1 for count, right in zip(counts, expected, strict=True)), (counts, expected)
    assert abs(sum(counts) - len(arrived)) <= 1
