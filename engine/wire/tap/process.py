"""The tap's process: `python -m llm_latency_lens.engine.wire.tap --segment-dir DIR`, started by the supervisor.

On stdin come frames: the list of servers to hold segments of, complete each time. On stdout goes one frame: ready, or
why not. When stdin ends the run is over. It reads no payload, has no key, and nobody waits for it: when it dies, the run
goes on with one stamp per read.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Final, Literal

import msgspec

from ...frames import Frames, frame
from ...process import die_with_parent, raise_priority
from ...records.tap_status import TapStatusWriter
from .filters import Server
from .packets import HOLD_NS, QUEUE_BYTES, PacketQueue

TICK_S: Final = 0.05
NICENESS: Final = -5  # above what loads the machine: a tap that does not run drops clones


class Servers(msgspec.Struct, frozen=True):
    """All servers whose segments are to be held from now on: (address family, numeric address, port) each."""

    servers: list[tuple[int, str, int]]


class Readiness(msgspec.Struct, frozen=True):
    """The tap's only word: `ready`, or `refused` with what is missing and how to grant it."""

    state: Literal["ready", "refused"]
    detail: str = ""


def explained(error: OSError) -> str:
    """What keeps the tap from working, and the way out."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            "segment stamps need CAP_NET_RAW (setcap cap_net_raw+ep on the interpreter, AmbientCapabilities=CAP_NET_RAW "
            "in a unit, --cap-add NET_RAW for a container)"
        )
    return f"packet sockets are not to be had here: {error.strerror or error}"


def refusal() -> str:
    """Why this process may not open packet sockets, and the way out; empty where it may."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError as error:
        return explained(error)
    return ""


class Tap:
    """The packet queues of both families, as far as they are needed, and the status page."""

    def __init__(self, directory: Path, queue_bytes: int) -> None:
        self._status = TapStatusWriter(directory)
        self._queue_bytes = queue_bytes
        self._queues: dict[int, PacketQueue] = {}

    def select(self, servers: Sequence[Server]) -> None:
        """Holds the segments of exactly these servers. Raises OSError, ValueError for too many servers."""
        for family in {server.family for server in servers}:
            if family in self._queues:
                self._queues[family].select(servers)
            else:
                self._queues[family] = PacketQueue(family, servers, queue_bytes=self._queue_bytes)

    def tick(self, *, ended: bool = False) -> None:
        """Drops what is old enough and writes the counters."""
        now = monotonic_ns()
        queues = self._queues.values()
        for queue in queues:
            queue.tick(now)
        hold_ns = min((queue.hold_ns for queue in queues), default=HOLD_NS)
        self._status.write(now, sum(q.packets for q in queues), sum(q.dropped for q in queues), hold_ns, ended=ended)

    def close(self) -> None:
        self.tick(ended=True)
        for queue in self._queues.values():
            queue.close()
        self._status.close()


def follow(tap: Tap, fd: int) -> None:
    """Obeys the frames on `fd` until it ends."""
    frames = Frames(Servers)
    while True:
        if select.select([fd], [], [], TICK_S)[0]:
            piece = os.read(fd, 1 << 16)
            if not piece:
                return
            for message in frames.feed(piece):
                try:
                    tap.select([Server(*server) for server in message.servers])
                except (OSError, ValueError) as error:
                    print(f"lens: tap: {error}", file=sys.stderr)
        tap.tick()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process. Exit code 0 also when it may not work: that is said on stdout."""
    parser = argparse.ArgumentParser(prog="python -m llm_latency_lens.engine.wire.tap", description=__doc__)
    parser.add_argument("--segment-dir", type=Path, required=True)
    parser.add_argument("--queue-bytes", type=int, default=QUEUE_BYTES, help="of clones, per address family")
    options = parser.parse_args(arguments)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_priority(NICENESS)
    if refused := refusal():
        os.write(1, frame(Readiness("refused", refused)))
        return 0
    try:
        tap = Tap(options.segment_dir, options.queue_bytes)
    except OSError as error:
        os.write(1, frame(Readiness("refused", explained(error))))
        return 0
    tap.tick()
    os.write(1, frame(Readiness("ready")))
    follow(tap, 0)
    tap.close()
    return 0
