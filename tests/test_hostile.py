"""Servers that mean harm: each costs at most its own request, a bounded piece of memory, and has the right outcome."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.support_lens import accounts, lens
from tests.support_simulator import FAST, simulator

pytestmark = pytest.mark.slow

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
MEGABYTE = b"a" * (1 << 20)
RSS_MAX_MB = 300  # replies of up to 64 MB and events of up to 16 MB are taken, six at a time
PER_TARGET = 3

Pieces = Iterator[bytes]


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def endless_headers() -> Pieces:
    yield HEAD
    for i in range(1 << 40):
        yield b"x-%d: y\r\n" % i * 100


def endless_header() -> Pieces:
    yield HEAD + b"x-a: "
    yield from repeat(MEGABYTE)


def endless_event() -> Pieces:
    yield HEAD + b"\r\n" + chunk(b"data: ")
    yield from repeat(chunk(MEGABYTE))


def endless_whole_body() -> Pieces:
    yield b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"a": "'
    yield from repeat(MEGABYTE)


def endless_error_body() -> Pieces:
    yield b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n\r\n"
    yield from repeat(MEGABYTE)


def deep_json() -> Pieces:
    yield HEAD + b"\r\n" + chunk(b'data: {"choices": ' + b"[" * 200_000 + b"\n\n")


def garbage() -> Pieces:
    dice = random.Random(1)
    while True:
        yield dice.randbytes(4096)


def one_byte_a_second() -> Pieces:
    for i in range(len(HEAD)):
        yield HEAD[i : i + 1]
        sleep(1)


@cache
def bomb() -> bytes:
    """A quarter of a megabyte that decompresses to a thousand times as much, and more than a reply may hold."""
    return gzip.compress(bytes(257 << 20), 9)


def zip_bomb() -> Pieces:
    yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    yield f"content-length: {len(bomb())}\r\n\r\n".encode() + bomb()


def comments_forever() -> Pieces:
    yield HEAD + b"\r\n"
    yield from repeat(chunk(b": x\n\n") * 1000)


def informational_forever() -> Pieces:
    yield from repeat(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 100)


def chunk_extension_forever() -> Pieces:
    yield HEAD + b"\r\n5;"
    yield from repeat(MEGABYTE)


def trailers_forever() -> Pieces:
    yield HEAD + b"\r\n" + chunk(EVENT) + chunk(END) + b"0\r\n"
    yield from repeat(b"x-trailer: y\r\n" * 1000)


def switching_protocols() -> Pieces:
    yield b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"


def redirect() -> Pieces:
    yield b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"


HOSTILE: list[tuple[Callable[[], Pieces], set[str]]] = [
    (endless_headers, {"stream_malformed"}),
    (endless_header, {"stream_malformed"}),
    (endless_event, {"stream_malformed", "timeout_total"}),  # as fast as the flood comes
    (endless_whole_body, {"stream_malformed", "timeout_total"}),
    (endless_error_body, {"http_server"}),
    (deep_json, {"stream_malformed"}),
    (garbage, {"stream_malformed"}),
    (one_byte_a_second, {"timeout_total"}),
    (zip_bomb, {"stream_malformed"}),
    (comments_forever, {"timeout_total"}),
    (informational_forever, {"stream_malformed"}),
    (chunk_extension_forever, {"stream_malformed", "timeout_total"}),
    (trailers_forever, set()),  # the reply was whole before them
    (switching_protocols, {"stream_malformed"}),
    (redirect, {"http_other"}),
]
BY_NAME = {make.__name__: make for make, _ in HOSTILE}


@contextmanager
def hostile_server() -> Iterator[str]:
    """Answers each request as its path says, until the client hangs up."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threads: list[threading.Thread] = []

    def serve(client: socket.socket) -> None:
        with client:
            try:
                request = client.recv(65536)
                if not request:  # only looked whether somebody listens
                    return
                for piece in BY_NAME[request.split(b"/", 2)[1].decode()]():
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(10)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run over all of them and an honest server."""
    folder = tmp_path_factory.mktemp("hostile")
    bomb()
    with hostile_server() as url, simulator(**FAST) as sim:
        targets = [{"name": name, "base_url": f"{url}/{name}/v1", "model": "m"} for name in BY_NAME]
        targets.append({"name": "honest", "base_url": f"{sim.base_url}/v1", "model": "m", "weight": 5})
        plan = {
            "targets": targets,
            "load": {"concurrency": 6},
            "requests": PER_TARGET * (len(BY_NAME) + 5),
            "limits": {"timeout": "6s"},
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        ended = lens("run", "plan.json", "--json", cwd=folder)
    assert ended.code == 0, ended.stderr
    return ended.summary


@pytest.mark.parametrize(("make", "outcomes"), HOSTILE, ids=[make.__name__ for make, _ in HOSTILE])
def test_it_costs_its_own_request(make: Callable[[], Pieces], outcomes: set[str], reported: dict[str, Any]) -> None:
    """One broken reply must not fail, delay or end any other request."""
    requests = next(each for each in reported["targets"] if each["name"] == make.__name__)["requests"]
    assert requests["sent"] > 0
    if outcomes:
        assert set(requests["failed"]) <= outcomes, [e for e in reported["errors"] if e["target"] == make.__name__]
        assert sum(requests["failed"].values()) == requests["sent"]
    else:
        assert requests["ok"] == requests["sent"]


def test_honest_requests_go_on_beside_them(reported: dict[str, Any]) -> None:
    """Servers fail for some requests only: the others are still measured."""
    requests = next(each for each in reported["targets"] if each["name"] == "honest")["requests"]
    assert requests["ok"] == requests["sent"] > 0
    accounts(reported["requests"])


def test_memory_is_bounded(reported: dict[str, Any]) -> None:
    """A reply without end must not take the machine's memory."""
    assert reported["client"]["rss_mb_max"] < RSS_MAX_MB


def test_the_run_directory_holds_no_flood(reported: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Error bodies and headers of MBs must not fill the disk."""
    folder: Path = tmp_path_factory.getbasetemp()
    size = sum(path.stat().st_size for path in folder.glob("hostile*/runs/2*/*"))
    assert 0 < size < 5 << 20
    assert all(len(error["message"]) <= 300 for error in reported["errors"])
