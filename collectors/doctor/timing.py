"""The active part on this machine: timers, wake-ups, loopback and kernel stamps on each worker's core."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Final

from ...engine.clock import keep_stamps_on
from ...engine.process import environ_without_keys
from .core_probe import MESSAGE
from .facts import CoreTiming

MESSAGES: Final = 60  # to each core
MESSAGES_MIN: Final = 8
ECHO_S: Final = 0.3  # for the messages of all cores together
APART_S: Final = 0.0005  # between two messages: the core has gone to sleep
WITHIN_S: Final = 1.0  # for everything
ORDER_NS: Final = 50_000  # the mapping of the clocks is known to some 0.1 us, less well on a busy core
JSON_BYTES: Final = 1 << 16


def time_cores(cores: Sequence[int], *, real_time: bool = False, within_s: float = WITHIN_S) -> tuple[CoreTiming, ...]:
    """The timing of each core, with the priority that workers ask for. Empty values for one whose process did not answer in time, or where loopback is down."""
    end = time.monotonic() + within_s
    with contextlib.ExitStack() as stack:
        stack.enter_context(keep_stamps_on())
        try:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=len(cores)))
        except OSError:
            return tuple(CoreTiming(cpu=cpu) for cpu in cores)
        started = 0
        for cpu in cores:
            with contextlib.suppress(OSError):  # no more processes for this user, or no right to start the interpreter
                stack.callback(_end, _start(cpu, listener.getsockname()[1], real_time))
                started += 1
        ready = _ready(listener, started, end, stack)
        count = max(MESSAGES_MIN, min(MESSAGES, int(ECHO_S / APART_S / 2 / max(1, len(cores)))))
        return tuple(_measured(cpu, ready.get(cpu), count, end) for cpu in cores)


def _start(cpu: int, port: int, real_time: bool) -> subprocess.Popen[bytes]:
    module = "llm_latency_lens.collectors.doctor.core_probe"
    numbers = ["--core", str(cpu), "--port", str(port), "--parent", str(os.getpid())]
    null = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", module, *numbers, *["--real-time"] * real_time],
        stdin=null,
        stdout=null,
        stderr=null,
        env=environ_without_keys(os.environ),
        start_new_session=True,  # the terminal's Ctrl-C is for this process, which ends them
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ready(listener: socket.socket, count: int, end: float, stack: contextlib.ExitStack) -> dict[int, socket.socket]:
    """The connections whose process has measured its timers, by core."""
    poll = stack.enter_context(select.epoll())
    poll.register(listener, select.EPOLLIN)
    waiting: dict[int, socket.socket] = {}
    ready: dict[int, socket.socket] = {}
    while len(ready) < count and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left):
            if fd == listener.fileno():
                sock = stack.enter_context(listener.accept()[0])
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            else:
                poll.unregister(fd)
                sock = waiting.pop(fd)
                message = sock.recv(MESSAGE.size)
                if len(message) == MESSAGE.size:
                    ready[MESSAGE.unpack(message)[0]] = sock
    return ready


def _measured(cpu: int, sock: socket.socket | None, count: int, end: float) -> CoreTiming:
    if sock is None:
        return CoreTiming(cpu=cpu)
    round_trips = []
    try:
        for number in range(count):
            left = end - time.monotonic()
            if left <= 0:
                break
            sock.settimeout(left)
            time.sleep(APART_S)
            sent = time.monotonic_ns()
            sock.sendall(MESSAGE.pack(number, sent))
            if len(sock.recv(MESSAGE.size)) < MESSAGE.size:
                break
            round_trips.append(time.monotonic_ns() - sent)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(max(0.2, end - time.monotonic()))
        answer = b""
        while piece := sock.recv(JSON_BYTES):
            answer += piece
        found = json.loads(answer)
    except (OSError, ValueError):
        return CoreTiming(cpu=cpu)
    return core_timing(cpu, found["timers_ns"], found["stamped_ns"], found["read_ns"], round_trips)


def core_timing(
    cpu: int, timers_ns: list[int], stamped_ns: list[int], read_ns: list[int], round_trips_ns: list[int]
) -> CoreTiming:
    """The statistics of one core. `stamped_ns` and `read_ns` count from the send of each message."""
    wakeups = [read - stamp for stamp, read in zip(stamped_ns, read_ns, strict=False)]
    in_order = all(-ORDER_NS <= stamp <= read + ORDER_NS for stamp, read in zip(stamped_ns, read_ns, strict=False))
    return CoreTiming(
        cpu=cpu,
        timer_p50_us=_us(timers_ns, 50),
        timer_p99_us=_us(timers_ns, 99),
        wakeup_p50_us=_us(wakeups, 50),
        wakeup_p99_us=_us(wakeups, 99),
        rtt_p50_us=_us(round_trips_ns, 50),
        stamped_share=len(stamped_ns) / len(read_ns) if read_ns else None,
        stamp_after_send_p50_us=median(stamped_ns) / 1000 if stamped_ns else None,
        stamps_in_order=in_order if stamped_ns else None,
    )


def _us(values_ns: list[int], percent: int) -> float | None:
    return quantiles(values_ns, n=100, method="inclusive")[percent - 1] / 1000 if len(values_ns) > 1 else None
