"""The words between supervisor and worker: length-prefixed msgpack frames over the worker's stdin and stdout.

To the worker: one `Share`, then `Order`s. From it: `Word`s. End of file on stdin means that the supervisor is gone.
"""

from __future__ import annotations

import os
from typing import Any, Final, Literal

import msgspec

from ..plan.plan import Plan

HEAD_BYTES: Final = 4


class Share(msgspec.Struct, kw_only=True, tag="share"):
    """All that one worker life needs. Holds secrets: it travels through a pipe, never through a file or argv."""

    plan: Plan
    run_id: str
    worker: int
    workers: int
    incarnation: int
    segment: str
    geometry: tuple[int, ...]
    environ: dict[str, str] = {}  # the proxy variables
    budget_left: int | None = None  # pico-USD, of a successor; None: a whole share of the plan's budget
    prices: list[tuple[int, int]] = []  # pico-USD per input and output token of each target, where a budget is set


class Order(msgspec.Struct, kw_only=True, tag="order"):
    """What to do now. `phase` begins phase `phase` at `at_ns` with the share's slots from `first` on."""

    do: Literal["phase", "drain", "cancel", "stop"]
    phase: int = 0
    at_ns: int = 0
    first: int = 0
    reason: str = "stopped"


class Word(msgspec.Struct, kw_only=True, tag="word"):
    """What a worker says: ready for orders, done with a phase, or unable to work."""

    say: Literal["ready", "phase_done", "failed"]
    phase: int = 0
    text: str = ""
    code: int = 1  # the exit code that goes with a failure


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Share | Order | Word] = msgspec.msgpack.Decoder(Share | Order | Word)


def frame(message: Share | Order | Word) -> bytes:
    """One message as it goes over the pipe."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "little") + body


class Frames:
    """Cuts a byte stream into messages: feed() what was read, get the messages that are whole."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, piece: bytes) -> list[Any]:
        """The messages completed by `piece`, in order."""
        pending = self._pending
        pending += piece
        messages: list[Any] = []
        while len(pending) >= HEAD_BYTES:
            size = int.from_bytes(pending[:HEAD_BYTES], "little")
            if len(pending) < HEAD_BYTES + size:
                break
            messages.append(_DECODER.decode(pending[HEAD_BYTES : HEAD_BYTES + size]))
            del pending[: HEAD_BYTES + size]
        return messages


def read_share(fd: int, frames: Frames) -> Share:
    """Blocks until the first frame is whole. Raises EOFError when the pipe ends before it is."""
    while True:
        piece = os.read(fd, 1 << 20)
        if not piece:
            raise EOFError("the pipe ended before the worker's share of the plan was complete")
        messages = frames.feed(piece)
        if messages:
            share = messages[0]
            assert isinstance(share, Share), "the first frame is the share"
            return share
