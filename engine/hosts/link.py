"""One end of the connection between driver and agent: messages in, messages out. Never blocks, but for `wait`."""

from __future__ import annotations

import select
import socket
from time import monotonic_ns
from typing import Final, Generic, TypeVar

from ..files import UNDECODABLE
from ..frames import Frames, frame

READ_BYTES: Final = 1 << 18
T = TypeVar("T")


class Link(Generic[T]):
    """A connected socket. `receive` returns messages of type T, `send` queues what the socket does not take at once.

    `lost` says why nothing can be exchanged any more; `heard_ns` is when the last bytes came."""

    def __init__(self, connection: socket.socket, kind: type[T]) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.lost = ""
        self.heard_ns = monotonic_ns()
        self._frames = Frames(kind)
        self._waiting = bytearray()
        self._speechless = False  # a write failed

    @property
    def waiting_bytes(self) -> int:
        """What was sent and is not with the kernel yet."""
        return len(self._waiting)

    def send(self, message: object) -> None:
        if not self._speechless and not self.lost:
            self._waiting += frame(message)
            self.flush()

    def flush(self) -> None:
        """Passes on what waits, as far as the socket takes it."""
        try:
            while self._waiting and not self.lost:
                del self._waiting[: self.socket.send(memoryview(self._waiting)[:READ_BYTES].tobytes())]
        except BlockingIOError:
            return
        except OSError:  # what the other side said before it left can still be read: receive() finds the end
            self._waiting.clear()
            self._speechless = True

    def receive(self) -> list[T]:
        """The messages that are complete now."""
        found: list[T] = []
        try:
            while not self.lost:
                piece = self.socket.recv(READ_BYTES)
                if not piece:
                    self.lose("the connection was closed")
                    break
                self.heard_ns = monotonic_ns()
                found += self._frames.feed(piece)
                if len(piece) < READ_BYTES:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self.lose(f"the connection broke: {error.strerror}")
        except UNDECODABLE as error:
            self.lose(f"what it says cannot be understood: {error}")
        return found

    def wait(self, timeout_s: float) -> None:
        """Returns when something can be received, or sent if something waits, or after `timeout_s`."""
        if not self.lost:
            poll = select.poll()  # not select(): a process with many streams has descriptors above its 1024
            poll.register(self.socket, select.POLLIN | (select.POLLOUT if self._waiting else 0))
            poll.poll(timeout_s * 1000)
            self.flush()

    def close(self) -> None:
        self.lost = self.lost or "closed"
        self.socket.close()

    def lose(self, why: str) -> None:
        """From here on nothing is exchanged any more; the socket stays open until close()."""
        self.lost = self.lost or why
        self._waiting.clear()
