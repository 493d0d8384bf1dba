"""One request as it was received, and what admission and replies may do with the client that sent it."""

from __future__ import annotations

from typing import Protocol


class Request:
    """One complete request."""

    __slots__ = (
        "arrival_ns", "body", "first_byte_ns", "headers", "keep_alive", "kernel", "method", "received_bytes", "turn",
        "url",
    )  # fmt: skip

    def __init__(self, first_byte_ns: int, turn: int) -> None:
        self.url = b""
        self.method = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.first_byte_ns = first_byte_ns
        self.arrival_ns = 0  # last byte
        self.kernel = False  # both times are the kernel's receive time stamps
        self.keep_alive = True
        self.received_bytes = 0
        self.turn = turn  # which request of its connection, from 0


class Ongoing(Protocol):
    """A reply that waits or is being sent."""

    def begin(self, start_ns: int) -> None:
        """Its service begins."""

    def abandoned(self, *, by_client: bool) -> None:
        """The connection is gone."""


class Client(Protocol):
    """A connection as replies see it."""

    number: int
    open: bool
    reply: Ongoing | None
    sent_bytes: int  # since the request in progress arrived
    late_writes: int

    def send(self, payload: bytes) -> None:
        """Hands the bytes to the kernel, or keeps what it does not take."""

    def send_split(self, payload: bytes, writes: int) -> int:
        """Sends the bytes in so many writes of about equal size; returns the time before the last one."""

    def done(self) -> None:
        """The reply is over; the next request may be answered."""

    def finish(self) -> None:
        """Closes once all that was sent is with the kernel."""

    def reset(self) -> None:
        """Closes with an RST."""
