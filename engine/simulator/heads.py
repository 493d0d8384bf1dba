"""Heads of HTTP replies as bytes. Sans-IO."""

from __future__ import annotations

from typing import Any, Final

import msgspec

_REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable", 529: "Site is overloaded",
}  # fmt: skip


def head_of(status: int, content_type: str, *, keep_alive: bool, length: int | None) -> bytes:
    """A head without its last lines."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nserver: lens-simulator\r\ncontent-type: {content_type}\r\n"
        f"{framing}\r\nconnection: {'keep-alive' if keep_alive else 'close'}\r\n"
    ).encode()


def json_page(page: Any) -> bytes:
    """A 200 reply with a JSON body, for pages."""
    return text_page(msgspec.json.encode(page), "application/json")


def text_page(body: bytes, content_type: str) -> bytes:
    """A 200 reply with this body."""
    return head_of(200, content_type, keep_alive=True, length=len(body)) + b"\r\n" + body
