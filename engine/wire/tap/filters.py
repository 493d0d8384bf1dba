"""Classic BPF programs that let exactly the segments from given servers pass. Sans-IO.

The sockets are of type SOCK_DGRAM, so a packet starts with its network header. The verdict of a matching packet is a
length above any packet's: cutting a clone would copy it, and a copy would protect nothing.

Sources: "The BSD Packet Filter" (McCanne, Jacobson, USENIX 1993); Documentation/networking/filter.rst of the kernel.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

LOAD_BYTE: Final = 0x30  # A = byte at k
LOAD_HALF: Final = 0x28  # A = 16 bits at k
LOAD_WORD: Final = 0x20  # A = 32 bits at k
LOAD_HALF_AT_X: Final = 0x48  # A = 16 bits at X + k
X_FROM_IHL: Final = 0xB1  # X = 4 * (byte at k & 15): the length of an IPv4 header
JUMP_EQUAL: Final = 0x15
JUMP_SET: Final = 0x45
RETURN: Final = 0x06

PASS_BYTES: Final = 0x40000
TCP: Final = 6
INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS

_PROTOCOL_AT: Final = {socket.AF_INET: 9, socket.AF_INET6: 6}
_SOURCE_AT: Final = {socket.AF_INET: 12, socket.AF_INET6: 8}
_V4_FRAGMENT_AT: Final = 6
_V4_FRAGMENT_OFFSET: Final = 0x1FFF
_V6_HEADER_BYTES: Final = 40


class Instruction(NamedTuple):
    """One `struct sock_filter`: operation, jumps relative to the next instruction when true and false, operand."""

    code: int
    if_true: int
    if_false: int
    k: int


class Server(NamedTuple):
    """One source of segments: address family, numeric address, TCP port."""

    family: int
    address: str
    port: int


def program(family: int, servers: Iterable[Server]) -> list[Instruction]:
    """The program for one family's packets: TCP segments whose source is one of `servers` pass, all else does not.

    IPv6 extension headers are not followed (no server sends them on a TCP stream); later fragments of an IPv4 packet
    do not pass. Raises ValueError when the list is too long for one program, which is at some 370 IPv6 servers.
    """
    body: list[Instruction] = []
    for server in sorted({server for server in servers if server.family == family}):
        body += _one(server)
    head = [Instruction(LOAD_BYTE, 0, 0, _PROTOCOL_AT[socket.AddressFamily(family)])]
    head += [Instruction(JUMP_EQUAL, 1, 0, TCP), _refuse()]
    if family == socket.AF_INET:
        head += [
            Instruction(LOAD_HALF, 0, 0, _V4_FRAGMENT_AT),
            Instruction(JUMP_SET, 0, 1, _V4_FRAGMENT_OFFSET),
            _refuse(),
            Instruction(X_FROM_IHL, 0, 0, 0),
        ]
    complete = [*head, *body, _refuse()]
    if len(complete) > INSTRUCTIONS_MAX:
        raise ValueError(f"{len(complete)} instructions for one packet filter, at most {INSTRUCTIONS_MAX}")
    return complete


def packed(instructions: Iterable[Instruction]) -> bytes:
    """The program as the kernel takes it: an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _one(server: Server) -> list[Instruction]:
    """Passes a segment of this server; for any other, goes on behind its own last instruction."""
    address = socket.inet_pton(server.family, server.address)
    words = struct.unpack(f">{len(address) // 4}I", address)
    start = _SOURCE_AT[socket.AddressFamily(server.family)]
    port = Instruction(LOAD_HALF_AT_X, 0, 0, 0)
    if server.family == socket.AF_INET6:
        port = Instruction(LOAD_HALF, 0, 0, _V6_HEADER_BYTES)
    left = 2 * len(words) + 3
    out: list[Instruction] = []
    for i, word in enumerate(words):
        out.append(Instruction(LOAD_WORD, 0, 0, start + 4 * i))
        out.append(Instruction(JUMP_EQUAL, 0, left - len(out) - 1, word))
    return [*out, port, Instruction(JUMP_EQUAL, 0, 1, server.port), Instruction(RETURN, 0, 0, PASS_BYTES)]


def _refuse() -> Instruction:
    return Instruction(RETURN, 0, 0, 0)
