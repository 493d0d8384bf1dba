"""Is each target of a plan reached, and over what path: DNS, TCP, TLS, round-trip time, loss, kept connections.

Sends what costs nothing: connections, and on one of them two GETs of the base URL without credentials, which no API bills.
All targets at once, each in a thread, because names, TLS and proxies are answered when they are; what has not answered by
the deadline is reported with the stage that it is in.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from ..dialects import HttpRequest
from ..errors import ProtocolError
from ..plan.plan import Plan, Target
from ..wire.endpoint import Address, Endpoint
from ..wire.http1 import ResponseParser
from ..wire.preflight import explained, open_tunnel

Stage = Literal["dns", "tcp", "tls", "http", "done"]

HANDSHAKES: Final = 12  # connections opened at once: each SYN and SYN-ACK that is lost is seen
WITHIN_S: Final = 0.9  # below the kernel's first retransmission of a SYN, 1 s (RFC 6298)
SPARE_S: Final = 0.1
READ_BYTES: Final = 1 << 16
# struct tcp_info of linux/tcp.h: byte 2 counts the retransmissions of what is not acknowledged yet
TCPI_RETRANSMITS: Final = 2
TCPI_RTT: Final = 68
TCPI_TOTAL_RETRANS: Final = 100
TCP_INFO_BYTES: Final = 104


@dataclass
class Reach:
    """What is known of the path to one target, filled in as it is found out. Times in us.

    `stage` is the one that it has come to, `error` why it went no further. `kept`: the connection carried a second
    request; None if that is not known, `detail` says why.
    """

    target: str
    where: str = ""
    server: tuple[str, int] | None = None  # the numeric address and port that was tried last
    stage: Stage = "dns"
    error: str = ""
    literal: bool = False
    tls: bool = False
    dns_us: float | None = None
    tcp_us: float | None = None
    tls_us: float | None = None
    rtts_us: list[float] = field(default_factory=list)
    handshakes: int = 0
    retransmits: int = 0
    kept: bool | None = None
    detail: str = ""


def reach_targets(plan: Plan, environ: Mapping[str, str], *, within_s: float = WITHIN_S) -> list[Reach]:
    """One result per target, in the plan's order. Raises PlanError for a proxy or CA file that cannot be used."""
    tried = [(Reach(target.name), Endpoint(target, environ), target) for target in plan.targets]
    end = time.monotonic() + within_s
    threads = [threading.Thread(target=_try, args=(*each, within_s, end), daemon=True) for each in tried]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end + SPARE_S - time.monotonic()))
    for (found, _, _), thread in zip(tried, threads, strict=True):
        if thread.is_alive() and not found.error:
            found.error = f"no answer within {within_s:g} s"
    return [found for found, _, _ in tried]


def _try(found: Reach, endpoint: Endpoint, target: Target, within_s: float, end: float) -> None:
    found.where = endpoint.proxy_where or endpoint.where
    found.tls = endpoint.tls_context is not None
    found.literal = bool(endpoint.addresses)
    try:
        _walk(found, endpoint, target, end)
    except (OSError, ProtocolError) as error:
        if found.stage == "http":  # it is reached; what it says to a GET of its base URL is its own affair
            found.detail = f"not known: {error or type(error).__name__} after a GET of the base URL"
        else:
            found.error = str(explained(target, endpoint, error, within_s))


def _walk(found: Reach, endpoint: Endpoint, target: Target, end: float) -> None:
    """Stage by stage. Raises OSError, ProtocolError where it ends."""
    before = time.monotonic_ns()
    if not endpoint.addresses:
        endpoint.resolved(socket.getaddrinfo(endpoint.next_host, endpoint.next_port, type=socket.SOCK_STREAM))
    found.dns_us = _since_us(before)
    found.stage = "tcp"
    sock = _connected(found, endpoint.addresses, end)
    try:
        sock.settimeout(max(0.05, end - time.monotonic()))
        if endpoint.connect_request:
            open_tunnel(sock, endpoint)
        if endpoint.tls_context is not None:
            found.stage = "tls"
            before = time.monotonic_ns()
            sock = endpoint.tls_context.wrap_socket(sock, server_hostname=endpoint.server_name)
            found.tls_us = _since_us(before)
        found.stage = "http"
        _ask_twice(found, sock, endpoint.encode(HttpRequest("GET", target.base_url, [], b"")), end)
        found.stage = "done"
    finally:
        with suppress(OSError):
            found.retransmits += _info(sock)[1]
        sock.close()


def _since_us(before_ns: int) -> float:
    return (time.monotonic_ns() - before_ns) / 1000


def _connected(found: Reach, addresses: list[Address], end: float) -> socket.socket:
    """A connection to the first address that accepts one. Raises OSError of the last address if none does."""
    refused: OSError = TimeoutError("no address")
    for position, address in enumerate(addresses):
        left = (end - time.monotonic()) / (len(addresses) - position)
        found.server = str(address.sockaddr[0]).partition("%")[0], int(address.sockaddr[1])
        try:
            first, *others = _handshakes(found, address, left)
        except OSError as error:
            refused = error
            continue
        for sock in others:  # before anything is asked: a server that serves one client at a time goes on to the first
            found.retransmits += _info(sock)[1]
            sock.close()
        return first
    raise refused


def _handshakes(found: Reach, address: Address, within_s: float) -> list[socket.socket]:
    """HANDSHAKES connections at once, those that were made in time. Raises OSError if none was."""
    begun = time.monotonic_ns()
    end = time.monotonic() + within_s
    pending: dict[int, socket.socket] = {}
    made: list[socket.socket] = []
    refusals: list[OSError] = []
    poll = select.epoll()
    try:
        for _ in range(HANDSHAKES):
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            pending[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
            with suppress(BlockingIOError):
                sock.connect(address.sockaddr)
        while pending and (left := end - time.monotonic()) > 0:
            if made and found.rtts_us and time.monotonic_ns() - begun > 20_000 * max(found.rtts_us) + 100_000_000:
                break  # the others' packets are lost: they would have come long ago
            for fd, _ in poll.poll(min(left, 0.05)):
                poll.unregister(fd)
                sock = pending.pop(fd)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    refusals.append(OSError(code, os.strerror(code)))
                    sock.close()
                    continue
                if not made:
                    found.tcp_us = _since_us(begun)
                made.append(sock)
                rtt_us, lost = _info(sock)
                found.rtts_us += [rtt_us] if rtt_us and not lost else []
        if not made:
            raise refusals[0] if refusals else TimeoutError("timed out")
        found.handshakes, found.retransmits = len(made) + len(pending), len(pending)
        return made
    finally:
        poll.close()
        for sock in pending.values():
            sock.close()


def _info(sock: socket.socket) -> tuple[float, int]:
    """(smoothed round-trip time in us, segments sent again) of a connection (tcp(7), TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    rtt_us, total = (struct.unpack_from("=I", info, at)[0] for at in (TCPI_RTT, TCPI_TOTAL_RETRANS))
    return float(rtt_us), max(int(total), info[TCPI_RETRANSMITS])


def _ask_twice(found: Reach, sock: socket.socket, request: bytes, end: float) -> None:
    """Sends the request twice on one connection; a server may announce that it keeps it, and yet close it."""
    parser = ResponseParser()
    sock.sendall(request)
    if not _reply(sock, parser, end):
        found.detail = "the server closed the connection without a reply to a GET of its base URL"
        return
    status, announced = parser.status, parser.keep_alive
    if not announced and status >= 400:
        found.detail = (
            f"the server closes after an error (HTTP {status} to a GET of its base URL); others are not known"
        )
        return
    if not announced:
        found.kept, found.detail = False, "the server announces that it closes"
        return
    parser.reset()
    try:
        sock.sendall(request)
        found.kept = _reply(sock, parser, end)
    except (ConnectionError, ssl.SSLError):
        found.kept = False
    found.detail = "two requests on one connection" if found.kept else "announced as kept, and closed after one reply"


def _reply(sock: socket.socket, parser: ResponseParser, end: float) -> bool:
    """Reads one reply; False when the connection ends before it does. Raises OSError, ProtocolError."""
    while not parser.complete:
        sock.settimeout(max(0.001, end - time.monotonic()))
        piece = sock.recv(READ_BYTES)
        if not piece:
            parser.eof()
            return parser.complete
        parser.feed(piece)
        parser.bodies.clear()
    return True
