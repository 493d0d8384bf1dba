"""HTTP/1.1 without a socket: framing, connection reuse, bounds, and requests that cannot be broken out of."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.dialects import HttpRequest
from llm_latency_lens.engine.errors import PlanError, ProtocolError
from llm_latency_lens.engine.wire import http1
from llm_latency_lens.engine.wire.http1 import ResponseParser, encode_request

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# why, bytes, (status, body, complete before the close, complete after it, may carry another)
RESPONSES: list[tuple[str, bytes, tuple[int, bytes, bool, bool, bool]]] = [
    ("content-length", OK + b"Content-Length: 5\r\n\r\nhello", (200, b"hello", True, True, True)),
    ("content-length of nothing", OK + b"Content-Length: 0\r\n\r\n", (200, b"", True, True, True)),
    ("content-length cut short", OK + b"Content-Length: 9\r\n\r\nhello", (200, b"hello", False, False, False)),
    ("chunked", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", (200, b"hello", True, True, True)),
    ("several chunks", CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", (200, b"hello", True, True, True)),
    ("size in capital hex", CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", (200, b"0123456789", True, True, True)),
    ("chunk extension", CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", (200, b"hello", True, True, True)),
    ("trailers", CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", (200, b"hello", True, True, True)),
    ("no last chunk", CHUNKED + b"5\r\nhello\r\n", (200, b"hello", False, False, False)),
    ("last chunk without its end", CHUNKED + b"5\r\nhello\r\n0\r\n", (200, b"hello", False, False, False)),
    ("chunk cut inside", CHUNKED + b"9\r\nhello", (200, b"hello", False, False, False)),
    (
        "chunked in capitals",
        OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        (200, b"a", True, True, True),
    ),
    ("the close delimits", OK + b"\r\nhello", (200, b"hello", False, True, False)),
    ("the close delimits nothing", OK + b"\r\n", (200, b"", False, True, False)),
    ("connection: close", OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", (200, b"a", True, True, False)),
    ("close among others", OK + b"Connection: x, Close\r\nContent-Length: 1\r\n\r\na", (200, b"a", True, True, False)),
    ("HTTP/1.0 closes", b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", (200, b"a", True, True, False)),
    (
        "HTTP/1.0 asked to stay",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
        (200, b"a", True, True, True),
    ),
    ("100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", (200, b"a", True, True, True)),
    (
        "103 with headers of its own",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Encoding: br\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na",
        (200, b"a", True, True, True),
    ),
    ("only a 100", b"HTTP/1.1 100 Continue\r\n\r\n", (0, b"", False, False, False)),
    ("204 has no body", b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True, True, True)),
    ("304 has no body", b"HTTP/1.1 304 Not Modified\r\n\r\n", (304, b"", True, True, True)),
    ("no reason phrase", b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\na", (200, b"a", True, True, True)),
    ("no reason phrase and no space", b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", (200, b"a", True, True, True)),
    ("an unusual status", b"HTTP/1.1 529 Overloaded\r\nContent-Length: 1\r\n\r\na", (529, b"a", True, True, True)),
    ("a head cut short", OK + b"Content-Le", (0, b"", False, False, False)),
    ("blanks around a value", OK + b"Content-Length:   1  \r\n\r\na", (200, b"a", True, True, True)),
    ("nothing at all", b"", (0, b"", False, False, False)),
]
MALFORMED: list[tuple[str, bytes]] = [
    ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    ("TLS on a plain port", b"\x15\x03\x01\x00\x02\x02\x50"),
    ("HTTP/2", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"),
    ("a status that is none", b"HTTP/1.1 abc OK\r\n\r\n"),
    ("length that is none", OK + b"Content-Length: five\r\n\r\n"),
    ("negative length", OK + b"Content-Length: -1\r\n\r\n"),
    ("two lengths", OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na"),
    ("length and chunked", OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    ("chunk size that is none", CHUNKED + b"xyz\r\nhello\r\n"),
    ("chunk longer than its size", CHUNKED + b"2\r\nhello\r\n0\r\n\r\n"),
    ("a control character in a header", OK + b"X-A: a\x00b\r\n\r\n"),
    ("a header without colon", OK + b"Nonsense\r\n\r\n"),
    ("switched protocols", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    ("a second reply", OK + b"Content-Length: 1\r\n\r\na" + OK + b"Content-Length: 1\r\n\r\nb"),
    ("bytes after the reply", OK + b"Content-Length: 1\r\n\r\nabc"),
    ("a content encoding nobody reads", OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\na"),
    ("broken gzip", OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
]


def read(pieces: list[bytes]) -> tuple[Any, ...]:
    """What a parser makes of the pieces and of the close after them."""
    parser = ResponseParser()
    body = b""
    for piece in pieces:
        parser.feed(piece)
        body += b"".join(parser.bodies)
        parser.bodies.clear()
    before = parser.complete
    parser.eof()
    found = (parser.status, body, before, parser.complete, parser.keep_alive, dict(parser.headers))
    parser.close()
    return found


@pytest.mark.parametrize(("why", "wire", "expected"), RESPONSES, ids=[row[0] for row in RESPONSES])
def test_a_response_is_the_same_however_it_is_cut(why: str, wire: bytes, expected: tuple[Any, ...]) -> None:
    """TCP cuts anywhere: a reply must not depend on where a read ended."""
    whole = read([wire])
    assert whole[:5] == expected
    for cut in range(1, len(wire)):
        assert read([wire[:cut], wire[cut:]]) == whole, cut
    assert read([wire[i : i + 1] for i in range(len(wire))]) == whole


@pytest.mark.parametrize(("why", "wire"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_what_is_malformed_raises_however_it_is_cut(why: str, wire: bytes) -> None:
    """A broken server is one outcome, not a hang or another error depending on timing."""
    for pieces in ([wire], *([wire[:cut], wire[cut:]] for cut in range(1, len(wire)))):
        with pytest.raises(ProtocolError):
            read(pieces)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8), st.data())
def test_any_chunked_body_comes_out_whole(chunks: list[bytes], data: st.DataObject) -> None:
    """Chunk sizes are the server's choice; no byte of a body may be lost or added."""
    wire = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert read(pieces)[:5] == (200, b"".join(chunks), True, True, True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_a_protocol_error(wire: bytes) -> None:
    """Any other exception would end the worker, and with it every other request."""
    for start in (b"", OK, CHUNKED):
        with contextlib.suppress(ProtocolError):
            read([start + wire])


def test_several_responses_go_through_one_parser() -> None:
    """Reused connections keep their parser: nothing of one reply may show in the next."""
    parser = ResponseParser()
    for number in range(3):
        parser.feed(OK + b"X-N: %d\r\nContent-Length: 1\r\n\r\n%d" % (number, number))
        assert (parser.status, parser.bodies, parser.keep_alive) == (200, [b"%d" % number], True)
        assert parser.headers[b"x-n"] == b"%d" % number
        parser.reset()
        assert (parser.status, parser.complete, parser.headers, parser.bodies) == (0, False, {}, [])
    parser.close()


def test_the_head_is_known_before_the_body_comes() -> None:
    """headers_ms is its own mark, and the framing is chosen by the head."""
    parser = ResponseParser()
    parser.feed(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (parser.status, parser.complete) == (200, False)
    assert parser.headers[b"content-type"] == b"text/event-stream"
    parser.close()


@pytest.mark.parametrize(
    ("name", "compress"),
    [(b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"deflate", zlib.compress), (b"GZIP", gzip.compress)],
)
def test_a_compressed_body_that_nobody_asked_for_is_read_all_the_same(name: bytes, compress: Any) -> None:
    """Some gateways compress whatever was asked; their replies still count."""
    body = compress(b"data: hello\n\n")
    wire = OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (name, len(body)) + body
    assert read([wire])[1] == b"data: hello\n\n"
    assert read([wire[i : i + 1] for i in range(len(wire))])[1] == b"data: hello\n\n"


def test_a_small_reply_that_decompresses_to_a_huge_one_is_refused() -> None:
    """A decompression bomb must not take the memory of the run."""
    body = gzip.compress(bytes(1 << 20))
    assert len(body) < 2000
    with pytest.raises(ProtocolError, match="decompresses to more than 65536 bytes"):
        ResponseParser(inflated_max=1 << 16).feed(
            OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )


BOUNDS: list[tuple[str, list[bytes], str]] = [
    ("a header without end", [OK + b"X: ", *[b"a" * 1000] * 100], "head is larger"),
    ("headers without end", [OK, *[b"X-%d: a\r\n" % i for i in range(300)]], "more than 256 headers"),
    ("informational replies without end", [b"HTTP/1.1 102 Processing\r\n\r\n"] * 20, "more than 16 informational"),
    ("trailers without end", [CHUNKED + b"0\r\nX: ", *[b"a" * 100_000] * 50], "trailers are larger"),
]


@pytest.mark.parametrize(("why", "pieces", "message"), BOUNDS, ids=[row[0] for row in BOUNDS])
def test_a_server_cannot_make_the_parser_keep_more_than_its_bounds(why: str, pieces: list[bytes], message: str) -> None:
    """Memory is bounded whatever a server sends without end."""
    with pytest.raises(ProtocolError, match=message):
        read(pieces)


def request(**changes: Any) -> HttpRequest:
    given: dict[str, Any] = {"method": "POST", "url": "http://h/v1", "headers": [("X-A", "b")], "body": b"{}"}
    return HttpRequest(**(given | changes))


def test_a_request_is_head_and_body_in_one_piece() -> None:
    """One send() per request: the send mark belongs to all of it."""
    assert encode_request(request(), "h:8000", target="/v1/chat") == (
        b"POST /v1/chat HTTP/1.1\r\nHost: h:8000\r\nX-A: b\r\nUser-Agent: %s\r\nAccept-Encoding: identity\r\n"
        b"Content-Length: 2\r\n\r\n{}" % http1.AGENT.encode()
    )


HEADS: list[tuple[str, dict[str, Any], bytes, bool]] = [
    ("a GET without a body has no length", {"method": "GET", "body": b""}, b"Content-Length", False),
    ("a GET with a body has one", {"method": "GET"}, b"Content-Length: 2", True),
    ("a POST without a body says 0", {"body": b""}, b"Content-Length: 0", True),
    ("a user agent that was given stays alone", {"headers": [("user-agent", "x")]}, b"User-Agent", False),
    ("an encoding that was asked for stays alone", {"headers": [("Accept-encoding", "gzip")]}, b"identity", False),
    ("characters of Latin-1 go as one byte", {"headers": [("X-A", "\xe9")]}, b"X-A: \xe9\r\n", True),
    ("a tab in a value", {"headers": [("X-A", "a\tb")]}, b"X-A: a\tb\r\n", True),
]


@pytest.mark.parametrize(("why", "changes", "part", "there"), HEADS, ids=[row[0] for row in HEADS])
def test_the_head_holds_what_the_request_needs(why: str, changes: dict[str, Any], part: bytes, there: bool) -> None:
    """A missing length or a doubled header is answered with 400 by strict servers."""
    assert (part in encode_request(request(**changes), "h", target="/")) is there


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("a line break in a value", {"headers": [("X-A", "b\r\nX-Evil: 1")]}, "/", "value of header X-A holds a line"),
    ("a bare LF in a value", {"headers": [("X-A", "b\nX-Evil: 1")]}, "/", "holds a line break"),
    ("a bare CR in a value", {"headers": [("X-A", "b\rX-Evil: 1")]}, "/", "holds a line break"),
    ("a NUL in a value", {"headers": [("X-A", "b\0")]}, "/", "holds a line break"),
    ("a line break in a name", {"headers": [("X-A\r\nX-Evil", "1")]}, "/", "is not a header name"),
    ("a colon in a name", {"headers": [("X-A:", "1")]}, "/", "is not a header name"),
    ("a blank in a name", {"headers": [("X A", "1")]}, "/", "is not a header name"),
    ("no name", {"headers": [("", "1")]}, "/", "is not a header name"),
    ("a name with a line break at its end", {"headers": [("X-A\n", "1")]}, "/", "is not a header name"),
    ("characters beyond Latin-1", {"headers": [("X-A", "\u20ac")]}, "/", "outside Latin-1: '\u20ac'"),
    ("a line break in the path", {}, "/a\r\nX-Evil: 1", "path of the request"),
    ("a blank in the path", {}, "/a HTTP/1.1", "path of the request"),
    ("a line break in the method", {"method": "GET /\r\n"}, "/", "not an HTTP method"),
]


@pytest.mark.parametrize(("why", "changes", "target", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_no_value_breaks_out_of_the_head(why: str, changes: dict[str, Any], target: str, message: str) -> None:
    """A line break in a configured value would smuggle headers into the request."""
    with pytest.raises(PlanError, match=message):
        encode_request(request(**changes), "h", target=target)


@given(st.text(), st.text())
def test_a_request_has_exactly_the_lines_that_it_was_given(name: str, value: str) -> None:
    """Whatever the values are, the head parses into the same lines."""
    try:
        wire = encode_request(request(headers=[(name, value)], body=b""), "h", target="/")
    except PlanError:
        return
    assert wire.count(b"\r\n") == 7
    assert wire.count(b"\n") == 7
    assert f"{name}: {value}".encode("latin-1") in wire.split(b"\r\n")
