"""Where one target's connections go: host, port, proxy, TLS and the addresses that a name stands for."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from time import monotonic_ns
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from ..clock import Clock
from ..dialects import HttpRequest
from ..plan.address import parse_url
from ..plan.plan import Target
from .http1 import encode_request
from .proxy import Tunnel, authorization, connect_request, proxy_for
from .tls import client_context

DNS_TTL_NS: Final = 30_000_000_000  # a resolved name is asked again after this, for connections opened later


class Address(NamedTuple):
    family: int
    sockaddr: Any


class Endpoint:
    """One target's way to its server. `addresses` is empty until a name was resolved."""

    def __init__(self, target: Target, environ: Mapping[str, str], clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        url = parse_url(target.base_url)
        self.host = url.host
        self.port = url.port
        self.authority = url.authority
        self.where = f"{url.host}:{url.port}"
        self.tls_context: ssl.SSLContext | None = None
        self.server_name = url.host
        if url.scheme == "https":
            self.tls_context = client_context(verify=target.verify_tls, ca_file=target.ca_file)
        proxy = proxy_for(url, target.proxy.value if target.proxy else None, environ)
        self.proxy = proxy
        self.proxy_where = f"{proxy.host}:{proxy.port}" if proxy else ""
        self.connect_request = b""
        if proxy and self.tls_context:
            self.connect_request = connect_request(url.host, url.port, proxy)
        self.next_host = target.resolve or (proxy.host if proxy else url.host)
        self.next_port = proxy.port if proxy and not target.resolve else url.port
        self.addresses: list[Address] = []
        self.expires_ns = 0
        literal = literal_address(self.next_host, self.next_port)
        if literal:
            self.addresses = [literal]
            self.expires_ns = 1 << 63

    def encode(self, request: HttpRequest) -> bytes:
        """The request as it goes on the wire to this endpoint: to a plain proxy with the complete URL as its target."""
        if self.proxy and not self.connect_request:
            return encode_request(request, self.authority, target=request.url, extra=authorization(self.proxy))
        url = urlsplit(request.url)
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        return encode_request(request, self.authority, target=target)

    @property
    def fresh(self) -> bool:
        """Are the addresses known and still valid?"""
        return bool(self.addresses) and self._clock() < self.expires_ns

    def resolved(self, found: list[tuple[Any, ...]]) -> None:
        """Takes the answer of getaddrinfo in, in its order (RFC 6724)."""
        self.addresses = [Address(family, sockaddr) for family, _, _, _, sockaddr in found]
        self.expires_ns = self._clock() + DNS_TTL_NS

    def tunnel(self) -> Tunnel:
        """A reader for the proxy's answer to CONNECT."""
        return Tunnel(self.proxy_where)


def literal_address(host: str, port: int) -> Address | None:
    """The socket address of an IP literal; None for a name."""
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        return None
    if version == 4:
        return Address(socket.AF_INET, (host, port))
    return Address(socket.AF_INET6, socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM)[0][4])
