"""Messages over a pipe: length-prefixed frames of msgpack, the length as 4 little-endian bytes."""

from __future__ import annotations

import os
from typing import Final, Generic, TypeVar

import msgspec

LENGTH_BYTES: Final = 4
READ_BYTES: Final = 1 << 20
T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


def frame(message: object) -> bytes:
    """One message as it goes over the pipe. `message` is what msgspec can encode, usually a Struct."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class Frames(Generic[T]):
    """Cuts a byte stream into messages of one type: feed() what was read, get the messages that are complete."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._pending = bytearray()

    def feed(self, piece: bytes) -> list[T]:
        """The messages completed by `piece`, in order. Raises msgspec.ValidationError on one of another type."""
        pending = self._pending
        pending += piece
        messages: list[T] = []
        while len(pending) >= LENGTH_BYTES:
            size = int.from_bytes(pending[:LENGTH_BYTES], "little")
            if len(pending) < LENGTH_BYTES + size:
                break
            messages.append(self._decoder.decode(pending[LENGTH_BYTES : LENGTH_BYTES + size]))
            del pending[: LENGTH_BYTES + size]
        return messages


def read_frame(fd: int, kind: type[T]) -> T:
    """Blocks until one frame is complete and returns its message; reads not a byte more. Raises EOFError when the
    pipe ends before that."""
    size = int.from_bytes(_exactly(fd, LENGTH_BYTES), "little")
    return msgspec.msgpack.decode(_exactly(fd, size), type=kind)


def _exactly(fd: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        piece = os.read(fd, min(size - len(content), READ_BYTES))
        if not piece:
            raise EOFError(f"the pipe ended after {len(content)} of {size} bytes")
        content += piece
    return bytes(content)
