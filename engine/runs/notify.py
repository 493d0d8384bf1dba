"""Reports the state of the service to the service manager: sd_notify(3), without libsystemd.

One datagram of KEY=VALUE lines to the AF_UNIX socket in $NOTIFY_SOCKET; a name that begins with @ is in the abstract
namespace. Without the variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Final

WATCHDOG_US: Final = "WATCHDOG_USEC"


class Notifier:
    """The way to the service manager that started this process, if one did."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_ns = _watchdog_ns(environ)  # the manager acts when it hears nothing for this long; 0: it does not

    def ready(self) -> None:
        """Start-up, or a reload, is finished."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={clock_gettime_ns(CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Keeps the watchdog from restarting the service."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell("STATUS=" + text.replace("\n", " "))

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(message.encode(), self._address)
            except OSError:
                return  # a manager that is gone or busy must not stop the probe; it has its own way to find out


def _watchdog_ns(environ: Mapping[str, str]) -> int:
    """$WATCHDOG_USEC in ns, 0 where it is not meant for this process ($WATCHDOG_PID) or no number."""
    pid, period = environ.get("WATCHDOG_PID", ""), environ.get(WATCHDOG_US, "")
    if not period.isdigit() or (pid and pid != str(os.getpid())):
        return 0
    return int(period) * 1000
