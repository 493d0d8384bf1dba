"""What one API's requests and streams mean: one file per API, sans-IO. Bytes and values in, deltas and usage out.

A dialect is an object with the two methods of `Dialect`; `dialect_of` (engine.dialects.table) finds them by name.
A `Reply` is made per request by `Dialect.reply()` and fed every event of the stream in order.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from ..plan.plan import Target
from ..records.record import UNKNOWN, UNPRICED_PARTS, Outcome

# What one event was, as bits of the int that Reply.event() returns.
TOKEN: Final = 1  # carries a token: non-empty content, reasoning or tool-call delta
VISIBLE: Final = 2  # the token is visible output (content or tool call), not reasoning
END: Final = 4  # the API's terminal marker
FAILED: Final = 8  # an error event, or bytes that are not this API: `outcome` and `error` say which
TOKEN_VISIBLE: Final = TOKEN | VISIBLE
OK: Final = Outcome.OK  # a member is 20x dearer by its class than by a name of its own (Python 3.11)
OPENING_PIECES: Final = (
    32  # of a reply's text, one an event: two replies that begin alike for so long are taken as equal
)
ERROR_CHARACTERS: Final = 4096  # cut for people later, where secrets have been masked


class Prompt(NamedTuple):
    """What is asked of a model in one request, in no API's form."""

    messages: tuple[dict[str, Any], ...]  # {"role": "user"|"assistant", "content": str | list of parts}, at least one
    system: str | None = None
    max_tokens: int | None = None
    columns: Mapping[str, Any] = MappingProxyType({})  # the workload row, for generic templates


class HttpRequest(NamedTuple):
    """A rendered request; headers without Host and Content-Length, names as they go on the wire."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes


class Reply:
    """The meaning of one reply, read as the dialect goes through its events. Subclasses implement `event` and `body`.

    Token counts stay UNKNOWN until the provider says; `text` is collected only where `keep_text` is set. `opening_crc` is
    the checksum of the first OPENING_PIECES pieces of the text, by which replies are compared: the checksum of every
    piece would cost each event 0.22 us (benches/bench_dialect.py).
    """

    __slots__ = (
        "billed_input_tokens",
        "billed_output_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "ended",
        "error",
        "finish",
        "flags",
        "heeds_text",
        "input_tokens",
        "keep_text",
        "opening_crc",
        "opening_left",
        "outcome",
        "output_tokens",
        "provider_us",
        "reasoning_text",
        "reasoning_tokens",
        "request_id",
        "text",
    )

    framing: str = "sse"  # sse | ndjson | chunks | json | none: how the body of a streamed reply is cut into events
    json_framing = "none"  # and how, where a server that was asked for SSE answers with application/json

    def __init__(self, keep_text: bool = False) -> None:
        self.input_tokens = UNKNOWN  # all prompt tokens, cached ones included
        self.cached_tokens = UNKNOWN
        self.cache_write_tokens = UNKNOWN
        self.output_tokens = UNKNOWN  # all generated tokens, reasoning included
        self.reasoning_tokens = UNKNOWN
        self.billed_input_tokens = self.billed_output_tokens = 0  # with the flag BILLED_APART
        self.provider_us = UNKNOWN  # until the first token, by the reply itself; headers are read by the connection
        self.flags = 0  # of the record: what the usage says about the bill
        self.finish: str | None = None  # the provider's own word
        self.outcome = OK  # set with FAILED, or to CONTENT_FILTERED by a finish reason
        self.error = ""  # a short message for people
        self.ended = False  # the terminal marker was seen
        self.request_id: str | None = None
        self.keep_text = keep_text
        self.opening_crc = 0
        self.opening_left = OPENING_PIECES
        self.heeds_text = True  # as long as anybody wants it: a dialect may take a shorter way afterwards
        self.text: list[str] = []
        self.reasoning_text: list[str] = []

    def event(self, data: bytes, name: bytes = b"") -> int:
        """Takes one event of a stream in; returns its bits (TOKEN | VISIBLE | END | FAILED). Never raises."""
        raise NotImplementedError

    def body(self, data: bytes) -> int:
        """Takes a complete non-streaming 200 body in; returns bits as `event` does."""
        raise NotImplementedError

    def said(self, text: str) -> None:
        """Takes a piece of the visible text in."""
        if self.keep_text:
            self.text.append(text)
        if self.opening_left:
            self.opening_left -= 1
            self.opening_crc = zlib.crc32(text.encode("utf-8", "replace"), self.opening_crc)
            if not self.opening_left:
                self.heeds_text = self.keep_text

    def finished(self) -> bool:
        """At the clean end of the body: is the reply complete by this API's rule?"""
        return self.ended

    def failed(self, message: str, outcome: Outcome = Outcome.STREAM_ERROR) -> int:
        """Notes how the reply failed, by default with an error that the provider sent; returns FAILED."""
        self.outcome = outcome
        self.error = message[:ERROR_CHARACTERS] or "the provider sent an error without a message"
        return FAILED

    def not_json(self, data: bytes, name: bytes, problem: object) -> int:
        """An event that is no JSON object. Gateways end every API's stream with the [DONE] of chat completions."""
        text = data.strip()
        if text in (b"", b"[DONE]"):
            return 0
        if name == b"error":
            return self.failed(text[:ERROR_CHARACTERS].decode("utf-8", "replace"))
        return self.malformed(problem)

    def drop_empty_usage(self) -> None:
        """Makes a usage of no input and no output unknown: some servers fill usage with zeros that count nothing."""
        if not self.input_tokens and not self.output_tokens:
            self.input_tokens = self.output_tokens = UNKNOWN

    def billed_beyond_tokens(self, billed: object) -> None:
        """Marks the cost unknown if the provider bills this part at a price of its own; 0, {} and None are no part."""
        if billed:
            self.flags |= UNPRICED_PARTS

    def malformed(self, problem: object) -> int:
        """Notes bytes that are not this API; returns FAILED."""
        return self.failed(f"malformed event: {problem}", Outcome.STREAM_MALFORMED)


class Dialect(Protocol):
    """One API. Stateless; one object serves all targets."""

    name: str
    default_base_url: str | None
    key_variable: str | None  # the provider's usual environment variable
    asks: str  # for people: method and path
    measures: str  # for people: what its replies say beside their times
    limits: str  # for people: what to know before believing the numbers

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        """Renders one request. Runs ahead of the slot, never on the hot path."""

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        """A fresh reader for one reply."""
