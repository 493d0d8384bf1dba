"""Is each target of a plan reached, and over what path: DNS, TCP, TLS, round-trip time, loss, kept connections.

Sends what costs nothing: connections, and on one of them two GETs (`free_url`) without credentials, which no API bills.
Servers are tried at once, each in a thread, because names, TLS and proxies are answered when they are; what has not
answered by the deadline is reported with the stage that it is in. The targets of one server come one after the other, and
never more than a few connections at a time: some servers have a listen backlog of 5, and what they drop would look like a
lossy network. On loopback nothing is lost, so that nothing more is opened there.
"""

from __future__ import annotations

import ipaddress
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
from typing import Final, Literal, NamedTuple

from ..dialects import HttpRequest
from ..errors import ProtocolError
from ..plan.plan import Plan, Target
from ..wire.endpoint import Address, Endpoint
from ..wire.http1 import ResponseParser
from ..wire.preflight import explained, open_tunnel

Stage = Literal["dns", "tcp", "tls", "http", "done"]

HANDSHAKES: Final = 12  # one after the other: each SYN and SYN-ACK that is lost is seen
WITHIN_S: Final = 0.8  # below the kernel's first retransmission of a SYN, 1 s (RFC 6298)
ASK_SHARE: Final = 0.6  # of that, the most for connecting and asking; the rest is for the handshakes
AGAIN_S: Final = 0.1  # a connection that is not made by then gets another one beside it
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
    address: Address | None = None  # the one that was tried last
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
    ended: bool = False

    @property
    def server(self) -> tuple[str, int] | None:
        """The numeric address and port that was tried last."""
        if self.address is None:
            return None
        return str(self.address.sockaddr[0]).partition("%")[0], int(self.address.sockaddr[1])


def reach_targets(plan: Plan, environ: Mapping[str, str], *, within_s: float = WITHIN_S) -> list[Reach]:
    """One result per target, in the plan's order. Raises PlanError for a proxy or CA file that cannot be used."""
    tried = [(Reach(target.name), Endpoint(target, environ), target) for target in plan.targets]
    end = time.monotonic() + within_s
    servers: dict[tuple[str, int], list[tuple[Reach, Endpoint, Target]]] = {}
    for each in tried:
        servers.setdefault((each[1].next_host, each[1].next_port), []).append(each)
    threads = [threading.Thread(target=_try_server, args=(group, end), daemon=True) for group in servers.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end + SPARE_S - time.monotonic()))
    for group, thread in zip(servers.values(), threads, strict=True):
        for found, _, _ in group:
            if thread.is_alive() and not found.ended:
                found.error, found.ended = f"no answer within {within_s:g} s", True
    return [found for found, _, _ in tried]


def _try_server(group: list[tuple[Reach, Endpoint, Target]], end: float) -> None:
    """The targets of one server, then the handshakes that are counted for all of them."""
    asked_by = time.monotonic() + (end - time.monotonic()) * ASK_SHARE
    for position, (found, endpoint, target) in enumerate(group):
        within_s = (asked_by - time.monotonic()) / (len(group) - position)
        _try(found, endpoint, target, within_s)
        found.ended = True
    known = [found for found, _, _ in group if found.address is not None and found.handshakes]
    if known and known[0].address is not None:
        path = _handshakes(known[0].address, max(known[0].rtts_us, default=0.0), end)
        for found in known:
            found.rtts_us += path.rtts_us
            found.handshakes += path.opened
            found.retransmits += path.lost


def _try(found: Reach, endpoint: Endpoint, target: Target, within_s: float) -> None:
    found.where = endpoint.proxy_where or endpoint.where
    found.tls = endpoint.tls_context is not None
    found.literal = bool(endpoint.addresses)
    try:
        _walk(found, endpoint, target, time.monotonic() + within_s)
    except (OSError, ProtocolError) as error:
        if found.stage == "http":  # it is reached; what it says to a GET is its own affair
            found.detail = f"not known: {error or type(error).__name__} after a GET"
        else:
            found.error = str(explained(target, endpoint, error, round(within_s, 1)))


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
        _ask_twice(found, sock, endpoint.encode(HttpRequest("GET", free_url(target), [], b"")), end)
        found.stage = "done"
    finally:
        with suppress(OSError):
            found.retransmits += _info(sock)[1]
        sock.close()


def free_url(target: Target) -> str:
    """What may be asked of a target at no cost: the list of models where the API has one below base_url, which a server
    answers with 200 or 401 and not with an error after which it closes; else base_url itself."""
    lists_models = target.provider.startswith("openai")
    return target.base_url.rstrip("/") + "/models" if lists_models else target.base_url


def _since_us(before_ns: int) -> float:
    return (time.monotonic_ns() - before_ns) / 1000


def _connected(found: Reach, addresses: list[Address], end: float) -> socket.socket:
    """A connection to the first address that accepts one. Raises OSError of the last address if none does."""
    refused: OSError = TimeoutError("no address")
    for position, address in enumerate(addresses):
        left = (end - time.monotonic()) / (len(addresses) - position)
        found.address = address
        try:
            return _first(found, address, time.monotonic() + left)
        except OSError as error:
            refused = error
    raise refused


def _first(found: Reach, address: Address, end: float) -> socket.socket:
    """The first connection that is made, of several begun AGAIN_S apart: the first SYN may be the one that is lost.

    Raises OSError when the server refuses, or none is made in time.
    """
    begun: dict[int, socket.socket] = {}
    begun_ns = time.monotonic_ns()
    poll = select.epoll()
    try:
        while (left := end - time.monotonic()) > 0:
            sock = _begin(address)
            begun[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
            for fd, _ in poll.poll(min(left, AGAIN_S)):
                made = begun.pop(fd)
                if code := made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    made.close()
                    raise OSError(code, os.strerror(code))
                found.tcp_us = _since_us(begun_ns)
                rtt_us, lost = _info(made)
                found.rtts_us += [rtt_us] if rtt_us and not lost else []
                late = time.monotonic_ns() - int(AGAIN_S * 1e9) > begun_ns + _patience_ns(rtt_us)
                found.handshakes, found.retransmits = 1 + len(begun), len(begun) * late
                return made
        raise TimeoutError("timed out")
    finally:
        poll.close()
        for sock in begun.values():
            sock.close()


class Path(NamedTuple):
    """What some handshakes showed."""

    rtts_us: list[float]
    opened: int
    lost: int


def _handshakes(address: Address, rtt_us: float, end: float) -> Path:
    """HANDSHAKES connections one after the other, or as many as there is time for. One that is not made in a multiple of
    the round-trip time has lost a packet."""
    path = Path([], 0, 0)
    if ipaddress.ip_address(str(address.sockaddr[0]).partition("%")[0]).is_loopback:
        return path
    for _ in range(HANDSHAKES):
        patience_s = _patience_ns(rtt_us) / 1e9
        if time.monotonic() + patience_s > end:
            break
        poll = select.epoll()
        sock = _begin(address)
        try:
            poll.register(sock, select.EPOLLOUT)
            made = bool(poll.poll(patience_s)) and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            rtts = [_info(sock)[0]] if made else []
            path = Path(path.rtts_us + rtts, path.opened + 1, path.lost + (not made))
        finally:
            poll.close()
            sock.close()
    return path


def _begin(address: Address) -> socket.socket:
    """A connection that is being made. Raises OSError where there is no route, or no descriptor."""
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(address.sockaddr)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    return sock


def _patience_ns(rtt_us: float) -> int:
    """After this time without an answer its packet is taken as lost."""
    return int(3 * rtt_us * 1000) + 50_000_000


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
        found.detail = "the server closed the connection without a reply to a GET"
        return
    status, announced = parser.status, parser.keep_alive
    if not announced and status >= 400:
        found.detail = f"the server closes after an error (HTTP {status} to a GET); others are not known"
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
