"""What the kernel knows of a connection (tcp(7), TCP_INFO): was all acknowledged, how far the peer is, what was sent again."""

from __future__ import annotations

import socket
import struct
from typing import Final

from ..records.record import RETRANSMITS_MAX, UNKNOWN
from .exchange import Exchange

# Offsets in struct tcp_info (linux/tcp.h), which has only ever grown at its end.
STATE: Final = 0
UNACKED: Final = struct.Struct("<I").unpack_from
UNACKED_OFFSET: Final = 24
ACKNOWLEDGED_BYTES: Final = 32
PATH: Final = struct.Struct("<I44xI").unpack_from  # tcpi_total_retrans, tcpi_min_rtt (us, since Linux 4.6)
PATH_OFFSET: Final = 100
PATH_BYTES: Final = 152
TCP_CLOSE: Final = 7


def request_acknowledged(sock: socket.socket) -> bool:
    """After an end of file without a reply: did the server's kernel acknowledge all of the request?

    If not, or after a reset, the server was closing anyhow and has not read the request: it may be sent again. A request
    that was acknowledged may have been carried out, and must not be (RFC 9110, 9.2.2).
    """
    known = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED_BYTES)
    return known[STATE] != TCP_CLOSE and not UNACKED(known, UNACKED_OFFSET)[0]


class TcpPath:
    """What lies between one socket and its peer: a proxy, where there is one. One call of the kernel per request.

    The round-trip time is the connection's lowest of the last five minutes (tcp_min_rtt_wlen), not the smoothed one: on a
    kept-alive connection the peer acknowledges a request together with its reply, up to 40 ms later, and the smoothed
    value becomes one of the server (20 ms of link and 35 ms of server: 20.1 against 54.6 after 30 requests).
    """

    __slots__ = ("_retransmits", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._retransmits = 0

    def note(self, exchange: Exchange) -> None:
        """Writes into the exchange how far the peer is, and how many segments were sent again since the last call.

        What is sent on a connection is sent before the reply begins, so its first token is late enough. Nothing is
        written where the kernel does not say: no sample yet, an old kernel.
        """
        try:
            known = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, PATH_BYTES)
        except OSError:  # no TCP socket
            return
        if len(known) < PATH_BYTES:
            return
        retransmits, rtt_us = PATH(known, PATH_OFFSET)
        if rtt_us != UNKNOWN:
            exchange.rtt_us = rtt_us
        sent_again = retransmits - self._retransmits
        if exchange.tcp_retransmits <= RETRANSMITS_MAX:  # of an attempt before this one
            sent_again += exchange.tcp_retransmits
        exchange.tcp_retransmits = min(sent_again, RETRANSMITS_MAX)
        self._retransmits = retransmits
