"""What one read of a chunked body costs: llhttp with the list's own append as `on_body`, and with a method."""

from __future__ import annotations

from typing import Any

import httptools
import pytest

from llm_latency_lens.engine.wire.http1 import ResponseParser

ROUNDS = 1000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"74\r\n" + b"x" * 0x74 + b"\r\n"


class Appended:
    """llhttp's wrapper looks `on_body` up once, when the parser is made, and calls what it found."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.on_body = self.bodies.append


class Method:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)


@pytest.mark.parametrize("kind", [Appended, Method])
def test_chunk_to_a_bound_append_or_a_method(benchmark: Any, kind: type[Appended | Method]) -> None:
    """us per 1000 reads are ns per read; the difference of the two is the method call."""
    protocol = kind()
    parser = httptools.HttpResponseParser(protocol)
    parser.feed_data(HEAD)

    def run() -> None:
        feed, bodies = parser.feed_data, protocol.bodies
        for _ in range(ROUNDS):
            feed(CHUNK)
            bodies.clear()

    benchmark(run)


def test_chunk(benchmark: Any) -> None:
    """The same read by our parser, with its bounds checked."""
    parser = ResponseParser()
    parser.feed(HEAD)

    def run() -> None:
        for _ in range(ROUNDS):
            parser.feed(CHUNK)
            parser.bodies.clear()

    benchmark(run)
