"""Packet sockets that hold clones of the servers' segments for a while, and drop them by the thousand.

How it works: the kernel queues a clone of each packet that the filter lets pass. PACKET_STATISTICS says how many came
since the last question, so the number of those that are older than `hold_ns` is known without looking at any of them;
recvmmsg(2) then takes that many off the queue, 1,024 a call, one byte of each into the same byte (MSG_TRUNC discards
the rest). When the queue is full the kernel drops new clones, not segments: a dropped clone only means that its segment
may be merged. From then on fewer are held than found room at that moment, a few more each second.
A queue as long as is wanted takes CAP_NET_ADMIN, which an ordinary container lacks: with net.core.rmem_max alone it
would hold some 500 clones. There the packets are dealt out to several sockets, each with a queue of that size
(packet(7), PACKET_FANOUT).
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
PACKET_FANOUT: Final = 18
FANOUT_ROUND_ROBIN: Final = 1 << 16  # PACKET_FANOUT_LB
FANOUT_UNIQUE_ID: Final = 0x2000 << 16
ETHERTYPES: Final = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}

HOLD_NS: Final = 2_000_000_000
BATCH: Final = 1024
QUEUE_BYTES: Final = 256 << 20
SOCKETS_MAX: Final = 64
HELD_MIN: Final = 16

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

    `packets` and `dropped` count what the filter let pass and how many of those found the queue full. `hold_ns` is the
    age that clones reach now. `force` False does without CAP_NET_ADMIN where it is there.
    """

    def __init__(
        self, family: int, servers: Sequence[Server], *, queue_bytes: int = QUEUE_BYTES, force: bool = True
    ) -> None:
        """Raises OSError: EPERM without CAP_NET_RAW, EAFNOSUPPORT and others where AF_PACKET is forbidden."""
        self.family = family
        self.packets = 0
        self.dropped = 0
        self.hold_ns = HOLD_NS
        self._held = 0
        self._held_max = 1 << 62
        self._ticked_ns = 0
        self._arrived: deque[tuple[int, list[int]]] = deque()  # (when counted, how many were kept by each socket)
        self._discarder = Discarder()
        self._filter = self._described(servers)
        self._sockets: list[socket.socket] = []
        try:
            first = self._open()
            if not force or not self._forced(first, queue_bytes):
                first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(queue_bytes, 2**31 - 1))
                got = first.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                self._deal(min(SOCKETS_MAX, -(-queue_bytes // got)), got // 2)
        except OSError:
            self.close()
            raise

    def select(self, servers: Sequence[Server]) -> None:
        """Replaces the filter. Raises OSError, ValueError for too many servers."""
        self._filter = self._described(servers)
        for each in self._sockets:
            each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(self._filter))

    def tick(self, now_ns: int) -> None:
        """Counts what came and drops what is older than the hold time. To be called a few times per hold time."""
        kept, dropped = [], 0
        for each in self._sockets:
            packets, lost = _statistics(each.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self.packets += packets
            dropped += lost
            kept.append(packets - lost)
        self.dropped += dropped
        if any(kept):
            self._arrived.append((now_ns, kept))
            self._held += sum(kept)
        if dropped:
            self._held_max = max(min(self._held, self._held_max) * 3 // 4, HELD_MIN)
        elif self._held_max < self._held * 2:  # slowly: each time that it is too much costs the stamps of a tick
            self._held_max += self._held_max // 1000 + 1
        self._discard(now_ns)

    def held(self) -> int:
        """How many clones are kept now, as far as they were counted."""
        return self._held

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _discard(self, now_ns: int) -> None:
        due = [0] * len(self._sockets)
        self.hold_ns = min(HOLD_NS, self.hold_ns + now_ns - self._ticked_ns)  # the oldest one has grown older
        self._ticked_ns = now_ns
        while self._arrived and (self._arrived[0][0] <= now_ns - HOLD_NS or self._held > self._held_max):
            arrived_ns, counts = self._arrived.popleft()
            self.hold_ns = min(self.hold_ns, now_ns - arrived_ns)
            self._held -= sum(counts)
            due = [before + count for before, count in zip(due, counts, strict=True)]
        for each, count in zip(self._sockets, due, strict=True):
            if count:
                self._discarder.discard(each.fileno(), count)

    def _open(self) -> socket.socket:
        # Not bound to a device: all of them.
        ethertype = socket.htons(ETHERTYPES[socket.AddressFamily(self.family)])
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ethertype)
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(self._filter))
        # What came before the filter was in place is anybody's, and would be counted: both are cleared.
        made.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._discarder.discard(made.fileno(), QUEUE_BYTES)
        return made

    def _forced(self, made: socket.socket, queue_bytes: int) -> bool:
        """Whether the queue may be longer than net.core.rmem_max."""
        try:
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, queue_bytes)
        except PermissionError:
            return False
        return True

    def _deal(self, sockets: int, queue_bytes: int) -> None:
        """Spreads the packets over so many sockets, the first included."""
        if sockets > 1:
            first = self._sockets[0]
            first.setsockopt(SOL_PACKET, PACKET_FANOUT, FANOUT_ROUND_ROBIN | FANOUT_UNIQUE_ID)
            group = first.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
            for _ in range(sockets - 1):
                each = self._open()
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, queue_bytes)
                each.setsockopt(SOL_PACKET, PACKET_FANOUT, FANOUT_ROUND_ROBIN | group)

    def _described(self, servers: Sequence[Server]) -> _Program:
        code = packed(program(self.family, servers))
        return _Program(len(code) // 8, code)
