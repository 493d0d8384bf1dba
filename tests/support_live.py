"""The live page of a run and the pages of `lens view`, as their viewers see them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.support_lens import LENS, environment

LIMIT_S = 60.0


def url_in(process: subprocess.Popen[str]) -> str:
    """The URL that `lens` prints on its stderr."""
    assert process.stderr
    while line := process.stderr.readline():
        if found := re.search(r"http://\S+/", line):
            return found[0]
    raise AssertionError("no URL was printed")


def fetched(url: str, *, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    """(status, body) of one request."""
    try:
        with urlopen(Request(url, headers=headers or {}, method=method), timeout=LIMIT_S) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def when_up(url: str) -> None:
    """Waits until the page is served: the socket is bound before its process has started."""
    end = monotonic() + LIMIT_S
    while fetched(url)[0] != 200:
        assert monotonic() < end
        sleep(0.05)


def messages(url: str, seen: str = "") -> Iterator[dict[str, Any]]:
    """The messages of a viewer until the run has ended or the server is gone."""
    with urlopen(f"{url}events?seen={seen}", timeout=LIMIT_S) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def now(message: dict[str, Any]) -> dict[str, str]:
    """The numbers of a message by their id."""
    return {name: text for name, text, _ in message["now"]}


def deaf_viewer(url: str) -> socket.socket:
    """A viewer that asks for the messages and reads nothing, with the smallest receive buffer."""
    host, port, path = re.fullmatch(r"http://\[?([^\]/]+?)\]?:(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    made.connect((host, int(port)))
    made.sendall(f"GET {path}events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return made


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """`lens view FOLDER`: its URL."""
    process = subprocess.Popen(
        [*LENS, "view", str(folder)], env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        yield url_in(process)
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)
