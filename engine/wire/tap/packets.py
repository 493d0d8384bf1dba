"""Packet sockets that hold clones of the servers' segments for a while, and drop them by the thousand.

How it works: the kernel queues a clone of each packet that the filter lets pass. PACKET_STATISTICS says how many came
since the last question, so the number of those that are older than `hold_ns` is known without looking at any of them;
recvmmsg(2) then takes that many off the queue, 1,024 a call, one byte of each into the same byte (MSG_TRUNC discards
the rest). When the queue is full the kernel drops new clones, not segments: a dropped clone only means that its segment
may be merged. The hold time is then halved until nothing is dropped any more.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from .filters import Server, packed, program

SO_ATTACH_FILTER: Final = 26
SO_RCVBUFFORCE: Final = 33
SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
ETHERTYPES: Final = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}

HOLD_NS: Final = 2_000_000_000
HOLD_MIN_NS: Final = 20_000_000
BATCH: Final = 1024
QUEUE_BYTES: Final = 256 << 20

_statistics = struct.Struct("=II").unpack


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr` of recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr` of recvmmsg(2)."""

    _fields_ = (("header", _Header), ("received", ctypes.c_uint))


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Discarder:
    """Takes packets off a socket's queue without looking at them."""

    def __init__(self) -> None:
        self._byte = ctypes.create_string_buffer(1)
        self._vector = _Vector(ctypes.addressof(self._byte), 1)
        self._messages = (_Message * BATCH)()
        for message in self._messages:
            message.header.vectors = ctypes.pointer(self._vector)
            message.header.vector_count = 1
        self._call = ctypes.CDLL(None, use_errno=True).recvmmsg

    def discard(self, fd: int, count: int) -> int:
        """Removes up to `count` packets; returns how many there were. Raises OSError, but not for an empty queue."""
        done = 0
        while done < count:
            got = self._call(fd, self._messages, min(BATCH, count - done), socket.MSG_DONTWAIT | socket.MSG_TRUNC, None)
            if got < 0:
                code = ctypes.get_errno()
                if code in (11, 4):  # EAGAIN: empty; EINTR
                    break
                raise OSError(code, os.strerror(code))
            done += got
        return done


class PacketQueue:
    """The clones of one address family. One owner; nothing here blocks.

    `packets` and `dropped` count what the filter let pass and how many of those found the queue full.
    """

    def __init__(self, family: int, servers: Sequence[Server], *, queue_bytes: int = QUEUE_BYTES) -> None:
        """Raises OSError: EPERM without CAP_NET_RAW, EAFNOSUPPORT and others where AF_PACKET is forbidden."""
        ethertype = socket.htons(ETHERTYPES[socket.AddressFamily(family)])
        self.family = family
        self.packets = 0
        self.dropped = 0
        self.hold_ns = HOLD_NS
        self._arrived: deque[tuple[int, int]] = deque()  # (when counted, how many were kept)
        self._discarder = Discarder()
        # Not bound to a device: all of them. What comes before the filter is in place is dropped like the rest.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ethertype)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, queue_bytes)
            except PermissionError:  # CAP_NET_ADMIN is missing: as much as net.core.rmem_max allows
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(queue_bytes, 2**31 - 1))
            self.select(servers)
        except OSError:
            self._socket.close()
            raise

    def select(self, servers: Sequence[Server]) -> None:
        """Replaces the filter in one step. Raises OSError, ValueError for too many servers."""
        code = packed(program(self.family, servers))
        described = _Program(len(code) // 8, code)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(described))

    def tick(self, now_ns: int) -> None:
        """Counts what came and drops what is older than the hold time. To be called a few times per hold time."""
        packets, dropped = _statistics(self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.packets += packets
        self.dropped += dropped
        if packets > dropped:
            self._arrived.append((now_ns, packets - dropped))
        if dropped:
            self.hold_ns = max(self.hold_ns // 2, HOLD_MIN_NS)
        elif self.hold_ns < HOLD_NS:
            self.hold_ns = min(self.hold_ns + self.hold_ns // 50 + 1, HOLD_NS)
        due = 0
        while self._arrived and self._arrived[0][0] <= now_ns - self.hold_ns:
            due += self._arrived.popleft()[1]
        if due:
            self._discarder.discard(self._socket.fileno(), due)

    def held(self) -> int:
        """How many clones are kept now, as far as they were counted."""
        return sum(count for _, count in self._arrived)

    def close(self) -> None:
        self._socket.close()
