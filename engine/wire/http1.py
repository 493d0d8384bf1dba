"""HTTP/1.1 on the wire (RFC 9110, 9112): one request as bytes, one response out of bytes. Sans-IO.

How it works. llhttp, in httptools, does the parsing; ResponseParser is its protocol object and keeps what it reports.
The parser stays with its connection for all responses; `reset` clears only what is kept here. llhttp calls `on_body` once per piece, so that is the bound `append` of `bodies`, which
callers empty after every read. An exception raised in a callback comes back as HttpParserError with ours in its
`__context__`: `described` takes it out. What llhttp leaves open is bounded here, since a benchmark must survive a
hostile or broken server: bytes and number of headers, trailers and chunk heads without a body (`bare`), the number
of informational replies, the decompressed size in total and per read. A second response to one request is an error;
`complete` therefore stays set until `reset`. Compressed bodies are inflated in steps, so that no piece is unbounded.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

import httptools

from .. import __version__
from ..dialects import HttpRequest
from ..errors import PlanError, ProtocolError

HEADER_BYTES_MAX: Final = 64 << 10
HEADERS_MAX: Final = 256
BARE_BYTES_MAX: Final = 4 << 20  # in reads of one reply that bring no body: trailers, chunk heads on their own
INFORMATIONAL_MAX: Final = 16
INFLATED_MAX: Final = 256 << 20
INFLATED_AT_ONCE: Final = 32 << 20  # out of one read
INFLATED_STEP: Final = 1 << 20
ODD_HEAD: Final = re.compile(rb"(?<!\r)\n|\n[ \t]|\ncontent-length:.*\ncontent-length:", re.IGNORECASE | re.DOTALL)
INFORMATIONAL: Final = re.compile(rb"HTTP/1\.\d 1\d\d")
HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
AGENT: Final = f"llm-latency-lens/{__version__}"

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_blank = re.compile(r"[\0- \x7f]").search
_Parser: Any = httptools.HttpResponseParser


def encode_request(
    request: HttpRequest, authority: str, *, target: str, extra: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """Head and body in one piece. `target` is the request target: a path, or the complete URL for a plain proxy.

    Raises PlanError for a method, target, header name or value that would break out of the head.
    """
    if not _token(request.method):
        raise PlanError(f"{request.method!r} is not an HTTP method")
    if _blank(target):
        raise PlanError(f"the path of the request holds a blank or a control character, write it as %20: {target!r}")
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {authority}"]
    given = {name.lower() for name, _ in request.headers}
    headers = [*request.headers, *extra]
    if "user-agent" not in given:
        headers.append(("User-Agent", AGENT))
    if "accept-encoding" not in given:
        headers.append(("Accept-Encoding", "identity"))  # compression would hide when each event was sent
    if request.body or request.method not in ("GET", "HEAD"):
        headers.append(("Content-Length", str(len(request.body))))
    for name, value in headers:
        if not _token(name):
            raise PlanError(f"{name!r} is not a header name")
        if "\r" in value or "\n" in value or "\0" in value:
            raise PlanError(f"the value of header {name} holds a line break")
        lines.append(f"{name}: {value}")
    try:
        head = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError as error:
        raise PlanError(
            f"a header holds characters outside Latin-1: {error.object[error.start : error.end]!r}"
        ) from error
    return head + b"\r\n\r\n" + request.body


class ResponseParser:
    """Reads one response after the other of one connection. feed() per read; then look at the attributes.

    `status` is 0 until the final head is complete; `bodies` collects the pieces of the body of the last feeds, the
    caller takes and clears them; `complete` is set at the end of the response, `keep_alive` says whether the
    connection may carry another one. reset() before the next response.
    """

    __slots__ = (
        "_bare_bytes",
        "_head",
        "_inflate",
        "_inflated",
        "_inflated_max",
        "_informational",
        "_parser",
        "bodies",
        "complete",
        "feed_data",
        "headers",
        "keep_alive",
        "on_body",
        "status",
    )

    def __init__(self, inflated_max: int = INFLATED_MAX) -> None:
        self._inflated_max = inflated_max
        self.bodies: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}  # names in lower case
        self._parser: Any = None
        self._begin()

    def _begin(self) -> None:
        # llhttp's wrapper looks on_body up once: with the list's own append a read costs a quarter less than with a
        # method (benches/bench_http1.py).
        self.on_body: Any = self.bodies.append
        self._parser = _Parser(self)
        self.feed_data: Any = self._parser.feed_data  # raises httptools' errors; callers use `described`
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.complete = False
        self.keep_alive = False
        self._bare_bytes = 0
        self._informational = 0
        self._head = b""  # all bytes so far, until the head is complete
        self._inflate: Inflate | None = None
        self._inflated = 0
        self.headers = {}
        self.bodies.clear()

    @property
    def encoded(self) -> bool:
        """Does the body have to be decompressed?"""
        return self._inflate is not None

    def reset(self) -> None:
        """Ready for the next response on the same connection; the parser itself goes on."""
        self._clear()

    def close(self) -> None:
        """Breaks the reference cycle with the parser, so that no garbage collection is needed."""
        self._parser = self.on_body = self.feed_data = None

    def feed(self, data: bytes | memoryview) -> None:
        """Takes what one read brought. Raises ProtocolError for anything that is not HTTP, or not within the bounds."""
        if not self.status:
            self._head += data
        try:
            self.feed_data(data)
        except httptools.HttpParserError as error:
            if self.complete:  # bytes after the reply: it stands, but the connection is out of step
                self.keep_alive = False
            elif self.status or not self._accept_odd_head():
                raise described(error) from error
        if not self.bodies:
            self.bare(len(data))
        elif self._inflate is not None:
            self._decompress()

    def _accept_odd_head(self) -> bool:
        """Reads a head again that llhttp refused, in strict form. False if it has no fault that we accept.

        Raises ProtocolError if the strict form is refused, too."""
        strict = strict_head(self._head)
        if strict is None or strict == self._head:
            return strict is None
        self._head = strict
        self.headers = {}
        self._informational = 0
        self._parser = _Parser(self)
        self.feed_data = self._parser.feed_data
        try:
            self.feed_data(strict)
        except httptools.HttpParserError as error:
            raise described(error) from error
        return True

    def bare(self, size: int) -> None:
        """Counts a read of `size` bytes that brought no body. Raises ProtocolError beyond the bounds."""
        self._bare_bytes += size
        if not self.status and self._bare_bytes > HEADER_BYTES_MAX:
            raise ProtocolError(f"the reply's head is larger than {HEADER_BYTES_MAX} bytes")
        if self._bare_bytes > BARE_BYTES_MAX:
            raise ProtocolError(f"the reply's trailers are larger than {BARE_BYTES_MAX} bytes")

    def eof(self) -> None:
        """The server closed. Completes a body that only the close delimits; else `complete` stays False."""
        if self.complete or not self.status:
            return
        framed = b"content-length" in self.headers or b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()
        if not framed:
            self.complete = True
            self.keep_alive = False

    # --- called by llhttp -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        if len(headers) >= HEADERS_MAX:
            raise ProtocolError(f"the reply has more than {HEADERS_MAX} headers")
        if not self.complete:
            headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.complete:
            raise ProtocolError("the server sent a second reply to one request")
        if 100 <= status < 200:
            self._informational += 1
            if status == 101:
                raise ProtocolError("the server switched protocols, which nobody asked for")
            if self._informational > INFORMATIONAL_MAX:
                raise ProtocolError(f"the server sent more than {INFORMATIONAL_MAX} informational replies")
            self.headers = {}
            return
        self.status = status
        if b"content-encoding" in self.headers:
            self._decode_as(self.headers[b"content-encoding"].strip().lower())

    def _decode_as(self, encoding: bytes) -> None:
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = Inflate(raw=encoding == b"deflate")
        elif encoding not in (b"identity", b""):
            raise ProtocolError(
                f"the reply is encoded as {encoding.decode('latin-1')!r} although identity was asked for"
            )

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    def _decompress(self) -> None:
        inflate = self._inflate
        assert inflate is not None
        pieces = self.bodies[:]
        self.bodies.clear()
        before = self._inflated
        for piece in pieces:
            while piece:
                plain, piece = inflate.step(piece, min(INFLATED_STEP, self._inflated_max))
                self._inflated += len(plain)
                limit = min(self._inflated_max, before + INFLATED_AT_ONCE)
                if self._inflated > limit:
                    raise ProtocolError(f"the reply decompresses to more than {limit} bytes")
                if plain:
                    self.bodies.append(plain)


class Inflate:
    """One compressed body: gzip of any number of members, zlib, or the raw deflate that some servers call deflate."""

    __slots__ = ("_first", "_inflate", "_members", "_raw")

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._members = 0  # that have ended
        self._first = b""  # the first byte, until the second one decides which of the three it is
        self._inflate: Any = None

    def step(self, piece: bytes, at_most: int) -> tuple[bytes, bytes]:
        """(plain bytes, `at_most` of them; what is left of the piece). Raises ProtocolError."""
        if self._inflate is None:
            piece = self._first + piece
            if self._members:
                piece = piece.lstrip(b"\0")  # padding
            if len(piece) < 2:
                self._first = piece
                return b"", b""
            headed = piece[:2] == b"\x1f\x8b" or (piece[0] & 15 == 8 and int.from_bytes(piece[:2], "big") % 31 == 0)
            self._inflate = zlib.decompressobj(wbits=47 if headed or not self._raw else -15)
        try:
            plain = self._inflate.decompress(piece, at_most)
        except zlib.error as error:
            raise ProtocolError(f"the reply's compression is broken: {error}") from error
        rest = self._inflate.unconsumed_tail
        if self._inflate.eof:
            rest = self._inflate.unused_data
            self._first, self._inflate = b"", None
            self._members += 1
        return plain, rest


def strict_head(head: bytes) -> bytes | None:
    """The heads at the start of `head` with CRLF, no folded lines and no Content-Length twice; None while one is cut.

    All three are faults that HTTP clients accept (RFC 9112 sections 2.2, 5.2, 6.3). What is not odd stays as it is.
    """
    strict = b""
    while True:
        end = HEAD_END.search(head)
        lines_end = end.start() if end is not None else len(head)
        if not ODD_HEAD.search(head, 0, lines_end):
            if end is None or not INFORMATIONAL.match(head):
                return strict + head
            strict, head = strict + head[: end.end()], head[end.end() :]
            continue
        if end is None:
            return None
        lines: dict[bytes, None] = {}
        for line in re.sub(rb"\r?\n[ \t]+", b" ", head[:lines_end]).splitlines():
            name, colon, value = line.partition(b":")
            lines[b"Content-Length: " + value.strip() if colon and name.lower() == b"content-length" else line] = None
        plain = b"\r\n".join(lines) + b"\r\n\r\n"
        if not INFORMATIONAL.match(head):
            return strict + plain + head[end.end() :]
        strict, head = strict + plain, head[end.end() :]


def described(error: httptools.HttpParserError | ProtocolError) -> ProtocolError:
    """What httptools' error means, as ours; ours as it is."""
    if isinstance(error, ProtocolError):
        return error
    if isinstance(error, httptools.HttpParserUpgrade):
        return ProtocolError("the server switched protocols, which nobody asked for")
    if isinstance(error.__context__, ProtocolError):
        return error.__context__
    return ProtocolError(f"malformed HTTP: {error}")
