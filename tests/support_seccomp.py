"""Runs a command that may make no packet socket, as under a container's seccomp profile: `support_seccomp.py ERRNO CMD...`.

A filter of seccomp(2) answers socket(AF_PACKET, ...) with that error, and lets everything else pass.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_ERRNO: Final = 0x0005_0000
SECCOMP_RET_ALLOW: Final = 0x7FFF_0000
SOCKET: Final = {"x86_64": 41, "aarch64": 198}  # its number as a system call
AF_PACKET: Final = 17
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, FIRST_ARGUMENT_AT = 0, 16  # in struct seccomp_data


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_packet_sockets(error: int) -> None:
    """From now on, for this process and what it starts."""
    instructions = [
        (LOAD_WORD, 0, 0, NUMBER_AT),
        (JUMP_EQUAL, 0, 3, SOCKET[platform.machine()]),
        (LOAD_WORD, 0, 0, FIRST_ARGUMENT_AT),
        (JUMP_EQUAL, 0, 1, AF_PACKET),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


if __name__ == "__main__":
    forbid_packet_sockets(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
