"""Two hosts on one machine: a pair of network namespaces, joined by a veth pair or by a link with delay, jitter and loss.

with veth_pair() as (server, client):
    ... start_simulator(..., wrapper=server.wrapper), `ip netns exec NAME ...` with client.wrapper ...

The kernel has no netem here, so the delay link is a TUN device in each namespace and a process between them, which
writes each packet to the other side when its time has come. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TUN: Final = Path("/dev/net/tun")
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 1
IFF_NO_PI: Final = 0x1000
CLONE_NEWNET: Final = 0x40000000
NAMESPACES: Final = Path("/run/netns")
MTU: Final = 1500
QUEUE_PACKETS: Final = 5000  # of a TUN device: the forwarder may be kept from its core for a while
DEVICE: Final = "lens0"

_numbers = itertools.count()

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)
needs_tun = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or not os.access(TUN, os.R_OK | os.W_OK),
    reason="a delay link needs root, iproute2 and /dev/net/tun",
)


class Host(NamedTuple):
    """One end: the namespace, its address, and what makes a command run there."""

    name: str
    address: str

    @property
    def wrapper(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@contextmanager
def _namespaces() -> Iterator[tuple[Host, Host]]:
    """Two namespaces of this process's own with their loopback up; removed at the end, whatever happens."""
    number = next(_numbers)
    made = [Host(f"lens-{os.getpid()}-{number}-{side}", f"10.213.{number % 250}.{side}") for side in (1, 2)]
    with ExitStack() as stack:
        for host in made:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "del", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield made[0], made[1]


def _up(host: Host, device: str) -> None:
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", device)
    _ip("-n", host.name, "link", "set", device, "up")


@contextmanager
def veth_pair() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them."""
    with _namespaces() as (one, other):
        pair = ["type", "veth", "peer", "name", DEVICE, "netns", other.name]
        _ip("-n", one.name, "link", "add", DEVICE, *pair)
        for host in (one, other):
            _up(host, DEVICE)
        yield one, other


@contextmanager
def delay_link(*, delay_ms: float, jitter_ms: float = 0.0, loss: float = 0.0) -> Iterator[tuple[Host, Host]]:
    """Two hosts whose packets take `delay_ms` each way, up to `jitter_ms` more, and are lost with probability `loss`.

    Jitter reorders: each packet draws its own.
    """
    with _namespaces() as (one, other):
        command = [sys.executable, str(Path(__file__)), one.name, other.name, str(delay_ms), str(jitter_ms), str(loss)]
        forwarder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert forwarder.stdout is not None
            assert forwarder.stdout.readline() == b"ready\n", "the forwarder did not start"
            for host in (one, other):
                _up(host, DEVICE)
                _ip("-n", host.name, "link", "set", DEVICE, "txqueuelen", str(QUEUE_PACKETS))
            yield one, other
        finally:
            forwarder.kill()
            forwarder.communicate()


# --- the forwarder ----------------------------------------------------------------------------------------------------


def _tun_in(namespace: str) -> int:
    """A descriptor of a new TUN device in the namespace, which this thread has entered then (setns(2))."""
    with (NAMESPACES / namespace).open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def forward(one: int, other: int, *, delay_ns: int, jitter_ns: int, loss: float) -> None:
    """Carries packets between two TUN devices until standard input ends.

    The last fraction of a millisecond is not left to the poll's timeout, whose resolution is 1 ms: it is waited out.
    """
    due: list[tuple[int, int, int, bytes]] = []  # (time, order of arrival, device, packet)
    order = itertools.count()
    toward = {one: other, other: one}
    poll = select.epoll()
    for fd in (0, one, other):
        poll.register(fd, select.EPOLLIN)
    while True:
        now = time.monotonic_ns()
        while due and due[0][0] <= now:
            _, _, device, packet = heapq.heappop(due)
            with suppress(OSError):  # the device is down, or its queue is full: as on a real link
                os.write(device, packet)
        timeout_s = max(0, due[0][0] - time.monotonic_ns()) // 1_000_000 / 1000 if due else -1
        for fd, _ in poll.poll(timeout_s):
            if fd == 0:
                return
            now = time.monotonic_ns()
            for _ in range(64):
                try:
                    packet = os.read(fd, MTU + 100)
                except OSError:  # nothing more, or not yet up
                    break
                if loss and random.random() < loss:
                    continue
                wait_ns = delay_ns + (int(random.random() * jitter_ns) if jitter_ns else 0)
                heapq.heappush(due, (now + wait_ns, next(order), toward[fd], packet))


def main() -> None:
    one, other, delay_ms, jitter_ms, loss = sys.argv[1:]
    with suppress(OSError):  # a forwarder that does not run is delay that nobody asked for
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    devices = _tun_in(one), _tun_in(other)
    print("ready", flush=True)
    forward(*devices, delay_ns=int(float(delay_ms) * 1e6), jitter_ns=int(float(jitter_ms) * 1e6), loss=float(loss))


if __name__ == "__main__":
    main()
