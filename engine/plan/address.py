"""URLs as targets and proxies give them, taken apart once."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import PlanError

PORTS: Final = {"http": 80, "https": 443}

_key_shape = re.compile(
    r"(?:(?:sk|pk|rk|gsk|xai|hf|nvapi|pplx|r8|co)[-_]|AIza|eyJ|Bearer )\S{8,}|(?=\S*[0-9])(?=\S*[A-Za-z])[A-Za-z0-9_+=-]{32,}"
).fullmatch
_host = re.compile(r"[0-9A-Za-z._~:%-]+").fullmatch  # names, IPv4, IPv6 with its zone


class Address(NamedTuple):
    """The parts of a URL. `host` has no brackets and is ASCII (IDNA), `authority` is what a Host header says."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str  # as given, without a trailing slash
    query: str
    user: str | None
    password: str | None


def parse_url(url: str, *, what: str = "base_url") -> Address:
    """Takes an http or https URL apart. Raises PlanError that names what is wrong with it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PlanError(
            f"{what} is not a URL: {error}; write it like https://host:port/path, got {shown(url)!r}"
        ) from error
    if parts.scheme not in PORTS:
        raise PlanError(f"{what} must begin with http:// or https://, got {shown(url)!r}")
    if not parts.hostname:
        raise PlanError(f"{what} names no host, got {shown(url)!r}")
    if any(character <= " " or character == "\x7f" for character in url):
        raise PlanError(f"{what} must not hold spaces or control characters, got {shown(url)!r}")
    host = parts.hostname
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError as error:
            raise PlanError(f"{what}: {host!r} is not a host name") from error
    if not _host(host):
        raise PlanError(f"{what}: {host!r} is not a host name")
    if not (parts.path + parts.query).isascii():
        raise PlanError(f"{what} must have characters outside ASCII written as %XX, got {shown(url)!r}")
    if port == 0:
        raise PlanError(f"{what}: port must be 1 to 65535, got 0 in {shown(url)!r}")
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port is None or port == PORTS[parts.scheme] else f"{bracketed}:{port}"
    return Address(
        parts.scheme,
        host,
        port or PORTS[parts.scheme],
        authority,
        parts.path.rstrip("/"),
        parts.query,
        unquote(parts.username) if parts.username is not None else None,
        unquote(parts.password) if parts.password is not None else None,
    )


def shown(url: str) -> str:
    """A URL without its credentials, for messages."""
    if looks_like_key(url):
        return "***"
    head, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{head}{separator}***@{host}" if at and credentials else url


def looks_like_key(text: str) -> bool:
    """Has the text the shape of an API key? Then no message shows it: people put keys where a path or host is wanted."""
    return bool(_key_shape(text.strip()))
