"""A server that plays a script, for faults that a real server does not make on demand. Loopback only, one thread."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)
Script = Callable[[socket.socket, int], None]


@dataclass
class Scripted:
    """A running scripted server: where it is and what it saw."""

    port: int
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def read_request(sock: socket.socket) -> bytes:
    """One HTTP request, whole; empty at end of file."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    pieces = [head, b"\r\n\r\n", body]
    missing = length - len(body)
    while missing > 0:
        piece = sock.recv(1 << 20)
        if not piece:
            return b""
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


@contextmanager
def scripted(*scripts: Script) -> Iterator[Scripted]:
    """Serves connection i with scripts[i], the last one from then on; a script gets the socket and its number."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    state = Scripted(listener.getsockname()[1])
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket, number: int) -> None:
        with sock:
            try:
                scripts[min(number, len(scripts) - 1)](sock, number)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(20)
            thread = threading.Thread(target=serve, args=(sock, state.connections), daemon=True)
            state.connections += 1
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield state
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)


def chunk(payload: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(content: str | None = None, *, finish: str | None = None) -> bytes:
    """One chat.completion.chunk as SSE."""
    delta = "{}" if content is None else f'{{"content":"{content}"}}'
    ending = "null" if finish is None else f'"{finish}"'
    return f'data: {{"choices":[{{"index":0,"delta":{delta},"finish_reason":{ending}}}]}}\n\n'.encode()


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
DONE = b"data: [DONE]\n\n"
REPLY = HEAD + b"".join(map(chunk, (event("a"), event("b"), event("c", finish="stop"), USAGE, DONE))) + b"0\r\n\r\n"


def answer(sock: socket.socket, reply: bytes = REPLY) -> bool:
    """Reads one request and answers it; False at end of file."""
    if not read_request(sock):
        return False
    sock.sendall(reply)
    return True


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
