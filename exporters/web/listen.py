"""Where a page listens: an address as people write it, the bound socket, and the URL that opens the page."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from typing import Final, NamedTuple

from ...engine.errors import PlanError

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 64
PORT_MAX: Final = 65_535
FORMS: Final = "PORT, HOST:PORT or [IPV6]:PORT"


class Listener(NamedTuple):
    """A bound socket. `token` is empty on loopback: whoever can connect there is on this machine already."""

    socket: socket.socket
    host: str  # of the URL
    port: int
    token: str

    @property
    def url(self) -> str:
        """What a browser opens; ends in a slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + (f"{self.token}/" if self.token else "")


def listen(text: str, option: str) -> Listener:
    """Binds `text` (FORMS; a port of 0 or none is a free one, no host is loopback). Raises PlanError that names `option`."""
    host, port = parse(text, option)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{option} {text!r}: {host!r} has no address here: {why}") from error
    try:
        bound = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise PlanError(f"{option} {text!r}: {_why(error, port, option)}") from error
    actual, port = bound.getsockname()[:2]
    found = ipaddress.ip_address(actual.partition("%")[0])
    if found.is_loopback:
        return Listener(bound, actual, port, "")
    shown = socket.gethostname() if found.is_unspecified else actual
    return Listener(bound, shown, port, secrets.token_urlsafe(16))


def parse(text: str, option: str) -> tuple[str, int]:
    """(host, port) of an address. Raises PlanError."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise _wrong(text, option)
    elif text.count(":") > 1:
        host, port = text, ""
    elif ":" in text:
        host, _, port = text.partition(":")
    else:
        host, port = ("", text) if text.isdecimal() else (text, "")
    if any(letter.isspace() or letter in "/@?#" for letter in host) or (
        port and not (port.isascii() and port.isdecimal())
    ):
        raise _wrong(text, option)
    if int(port or 0) > PORT_MAX:
        raise PlanError(f"{option} {text!r}: port must be 0 to {PORT_MAX:,}, got {port}; 0 takes a free one")
    return host or LOOPBACK, int(port or 0)


def _wrong(text: str, option: str) -> PlanError:
    return PlanError(f"{option} {text!r} is no address to listen on; write {FORMS}, or {option} alone for a free port")


def _why(error: OSError, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; give another port, or 0 for a free one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be bound by this user; give a port from 1024 on, or 0 for a free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine does not have that address; give one of its own, or {option} alone for loopback"
    return f"cannot listen: {error.strerror}"
