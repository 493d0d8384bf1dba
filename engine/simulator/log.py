"""The simulator's own log: one JSON line per request, encoded when the request ends, written by a thread of its own.

All times are CLOCK_MONOTONIC ns, null where the moment never came. `clock` says what `arrival_ns` and `first_byte_ns`
are: "kernel" (receive time stamp of the socket) or "user" (read after the receive call). Send times are read right
before send(); a write that had to wait for the socket is counted in `late_writes`, its stamp is then too early.
"""

from __future__ import annotations

import os
import threading
from typing import Final

import msgspec

FLUSH_S: Final = 0.1


class Row(msgspec.Struct, kw_only=True):
    """One request as the server saw it."""

    id: str
    arrival_ns: int  # last byte of the request
    first_byte_ns: int
    clock: str
    connection: int
    turn: int  # which request of its connection, from 0
    dialect: str = ""
    path: str = ""
    model: str = ""
    stream: bool = False
    fault: str = "ok"
    status: int = 0  # 0: no head was sent
    service_ns: int | None = None  # service began: arrival, or later if it queued
    head_sent_ns: int | None = None
    first_token_sent_ns: int | None = None
    first_output_sent_ns: int | None = None  # first visible token
    last_token_sent_ns: int | None = None
    end_sent_ns: int | None = None
    tokens: int = 0  # output tokens sent, reasoning included
    reasoning_tokens: int = 0
    events: int = 0  # events sent, comments not counted
    token_events: int = 0
    prompt_tokens: int = 0
    usage: bool = False  # usage was sent
    finish: str | None = None  # stop | length | filter, once sent
    completed: bool = False  # the complete reply was handed to the kernel, terminal marker included
    client_closed: bool = False  # the client went away first
    late_writes: int = 0
    max_lateness_ns: int = 0  # of its token writes behind their schedule
    received_bytes: int = 0
    sent_bytes: int = 0
    token_sent_ns: list[int] | None = None  # with --log-tokens: read right before the send() of the token's last byte
    token_done_ns: list[int] | None = (
        None  # with --log-tokens: read right after it; far apart, nobody knows when it went
    )


_ENCODER: Final = msgspec.json.Encoder()


class RequestLog:
    """Appends rows to a file. Lines stay in one piece by O_APPEND, so several processes may share it. `add` never blocks."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lines: list[bytes] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="simulator-log", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        self._lines.append(_ENCODER.encode(row))

    def close(self) -> None:
        """Writes what is left."""
        self._stopping.set()
        self._thread.join()
        self._write()
        os.close(self._fd)

    def _write_often(self) -> None:
        while not self._stopping.wait(FLUSH_S):
            self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        lines.append(b"")
        block = b"\n".join(lines)
        while block:
            block = block[os.write(self._fd, block) :]
