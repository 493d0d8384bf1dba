"""Measures one core: `python -m llm_latency_lens.collectors.doctor.core_probe --core N --port PORT --parent PID`.

A process of its own, pinned and with the priority of a worker, because threads of one interpreter would wait for each
other. It connects to its parent over loopback, measures its timers, says so, echoes each message and notes when the
kernel and when it itself saw it. The result goes to the parent as JSON when the parent ends its side.

A message is two int64: its number and the sender's CLOCK_MONOTONIC.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import socket
import struct
from time import monotonic_ns
from typing import Final

from ...engine.clock import SO_TIMESTAMPNS, StampClock, Timer
from ...engine.process import die_with_parent, raise_priority, run_in_real_time

NICENESS: Final = -10  # of a worker (engine.worker.process)
TIMERS: Final = 200  # 0.2 s
MESSAGE: Final = struct.Struct("=qq")
TIMESPEC: Final = struct.Struct("@qq")
SILENCE_S: Final = 3.0


def overshoots_ns(count: int = TIMERS) -> list[int]:
    """How late a blocked process notices each of some timers, 0.5 to 1.5 ms apart."""
    timer, poll, late = Timer(), select.epoll(), []
    poll.register(timer.fileno(), select.EPOLLIN)
    for i in range(count):
        due = monotonic_ns() + 500_000 + i * 7919 % 1000 * 1000
        timer.arm(due)
        poll.poll()
        late.append(monotonic_ns() - due)
        timer.read()
    poll.close()
    timer.close()
    return late


def echo(sock: socket.socket) -> dict[str, list[int]]:
    """Answers messages until the peer ends; when each was stamped and read, in ns after its send."""
    clock, poll = StampClock(), select.epoll()
    poll.register(sock, select.EPOLLIN)
    stamped: list[int] = []
    read: list[int] = []
    while poll.poll(SILENCE_S):
        piece, ancillary, _, _ = sock.recvmsg(MESSAGE.size, 64)
        now = monotonic_ns()
        if len(piece) < MESSAGE.size:
            break
        sock.sendall(piece)
        sent = MESSAGE.unpack(piece)[1]
        stamp = next((data for _, kind, data in ancillary if kind == SO_TIMESTAMPNS), b"")
        if len(stamp) >= TIMESPEC.size:
            seconds, ns = TIMESPEC.unpack_from(stamp)
            stamped.append(seconds * 1_000_000_000 + ns - clock.offset_ns - sent)
        read.append(now - sent)
    poll.close()
    return {"stamped_ns": stamped, "read_ns": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--core", "--port", "--parent"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--real-time", action="store_true")
    options = parser.parse_args()
    die_with_parent(options.parent)
    os.sched_setaffinity(0, {options.core})
    if not (options.real_time and run_in_real_time()):
        raise_priority(NICENESS)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.connect(("127.0.0.1", options.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gc.collect()
        gc.disable()
        timers = overshoots_ns()
        sock.sendall(MESSAGE.pack(options.core, 0))
        result = echo(sock) | {"timers_ns": timers}
        sock.sendall(json.dumps(result).encode())


if __name__ == "__main__":
    main()
