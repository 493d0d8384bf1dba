"""HTTP proxies: which one a target goes through, the CONNECT request, the proxy's answer. Sans-IO."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Final

from ..errors import PlanError, ProtocolError
from ..plan.address import Address, parse_url, shown
from ..plan.plan import Target

ANSWER_BYTES_MAX: Final = 16 << 10


def proxy_for(target: Address, given: str | None, environ: Mapping[str, str]) -> Address | None:
    """The proxy for a target: the one given, else the environment's (lower case first, as curl does), else none.

    An empty string turns the environment's off. NO_PROXY: names (with all below them), ports, CIDR blocks, `*`.
    """
    if given is not None:
        return proxy_address(given, what="proxy") if given else None
    if _excluded(target, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    # HTTP_PROXY in upper case is not read where a CGI request could have set it (httpoxy); we are no CGI program.
    for name in (f"{target.scheme}_proxy", f"{target.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        value = environ.get(name)
        if value:
            return proxy_address(value if "://" in value else f"http://{value}", what=name)
    return None


def proxied(target: Target, environ: Mapping[str, str]) -> bool:
    """Whether the target is reached through a proxy."""
    given = None if target.proxy is None else target.proxy.value
    return proxy_for(parse_url(target.base_url), given, environ) is not None


def proxy_address(url: str, *, what: str) -> Address:
    """The address of a proxy. Raises PlanError for one that wants TLS: its credentials would go in the clear."""
    address = parse_url(url, what=what)
    if address.scheme != "http":
        raise PlanError(f"{what} must begin with http://, TLS to the proxy itself is not spoken, got {shown(url)!r}")
    return address


def _excluded(target: Address, patterns: str) -> bool:
    for raw in patterns.split(","):
        pattern = raw.strip().lower()
        if not pattern:
            continue
        if pattern == "*" or _covers(pattern, target):
            return True
    return False


def _covers(pattern: str, target: Address) -> bool:
    try:
        return ipaddress.ip_address(target.host) in ipaddress.ip_network(pattern.strip("[]"), strict=False)
    except ValueError:
        pass
    name, separator, port = pattern.rpartition(":")
    if separator and port.isdigit():
        if int(port) != target.port:
            return False
        pattern = name
    pattern = pattern.lstrip("*").lstrip(".")
    return target.host == pattern.strip("[]") or target.host.endswith("." + pattern)


def authorization(proxy: Address) -> tuple[tuple[str, str], ...]:
    """The Proxy-Authorization header, if the proxy's URL has credentials (RFC 7617)."""
    if proxy.user is None:
        return ()
    credentials = f"{proxy.user}:{proxy.password or ''}".encode()
    return (("Proxy-Authorization", "Basic " + base64.b64encode(credentials).decode()),)


def connect_request(host: str, port: int, proxy: Address) -> bytes:
    """CONNECT host:port, with credentials where the proxy's URL has them."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in authorization(proxy)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Tunnel:
    """Reads the proxy's answer to CONNECT. `where` names the proxy in messages, without credentials."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._answer = b""

    def feed(self, piece: bytes) -> bool:
        """True when the tunnel is open. Raises ProtocolError when the proxy refuses, closes or speaks no HTTP."""
        if not piece:
            raise ProtocolError(f"proxy {self._where} closed the connection instead of opening a tunnel")
        self._answer += piece
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end:
            if len(self._answer) > ANSWER_BYTES_MAX:
                raise ProtocolError(f"proxy {self._where} answered with more than {ANSWER_BYTES_MAX} bytes of head")
            return False
        words = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise ProtocolError(f"proxy {self._where} does not speak HTTP")
        status = int(words[1])
        if not 200 <= status < 300:
            hint = "; give its credentials in the proxy URL: http://user:password@host:port" if status == 407 else ""
            reason = words[2].decode("latin-1") if len(words) > 2 else ""
            raise ProtocolError(f"proxy {self._where} refused the tunnel: {status} {reason}{hint}".rstrip())
        if rest:
            raise ProtocolError(f"proxy {self._where} sent data before the tunnel was used")
        return True
