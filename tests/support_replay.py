"""Records what a server really sends, byte by byte, and plays it back to the parser, the framing and the dialect."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from llm_latency_lens.engine.dialects import Prompt
from llm_latency_lens.engine.dialects.table import DIALECTS, framing_for
from llm_latency_lens.engine.plan.plan import Target
from llm_latency_lens.engine.wire.endpoint import Endpoint
from llm_latency_lens.engine.wire.framing import Framing, framing_of
from llm_latency_lens.engine.wire.http1 import ResponseParser
from tests.support_dialects import Read, outcome_of

HELLO = Prompt(({"role": "user", "content": "hello there"},), max_tokens=8)


def recorded(target: Target, prompt: Prompt = HELLO) -> bytes:
    """All bytes of the reply to one request, as they came."""
    wire = Endpoint(target, {}).encode(DIALECTS[target.provider].request(target, prompt))
    parts = urlsplit(target.base_url)
    parser, raw = ResponseParser(), b""
    with socket.create_connection((str(parts.hostname), parts.port), 20) as sock:
        sock.sendall(wire)
        while not parser.complete:
            piece = sock.recv(65536)
            if not piece:
                parser.eof()
                break
            raw += piece
            parser.feed(piece)
    return raw


def played(target: Target, pieces: Iterable[bytes]) -> Read:
    """What is read of a reply whose bytes come in these pieces."""
    reply = DIALECTS[target.provider].reply(target, keep_text=True)
    parser = ResponseParser()
    framing: Framing | None = None
    bits: list[int] = []
    for piece in pieces:
        parser.feed(piece)
        if framing is None and parser.status:
            framing = framing_of(framing_for(reply, parser.headers.get(b"content-type", b"").decode("latin-1")))
        for body in parser.bodies:
            assert framing is not None
            bits += [reply.event(data, name) for name, data in framing.feed(body)]
        parser.bodies.clear()
    assert framing is not None
    bits += [reply.event(data, name) for name, data in framing.flush()]
    return outcome_of(reply, bits)


def bytewise(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]
