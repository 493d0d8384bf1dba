"""Who may read a page: on loopback, requests that name this machine; elsewhere, those whose URL begins with the token.

A page of some other site can make a browser send requests to 127.0.0.1. It cannot read the replies, unless its own host
name is made to resolve to 127.0.0.1 (DNS rebinding): then the Host header has that name, and is refused here. It can
send a POST without being asked; one that changes something therefore needs a header that such a page cannot set (Fetch
standard: a header of its own needs a preflight request, which nobody answers).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from .listen import Listener

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the token is in the URL
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
INTENT: Final = "X-Lens-Control"  # the header of a request that changes something

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(listener: Listener) -> web.Application:
    """An application without routes yet, which refuses strangers; its routes begin with `prefix_of`."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if listener.token:
            given = request.path.split("/")[1]
            if not hmac.compare_digest(given.encode(), listener.token.encode()):
                return web.Response(status=403, text="The URL lacks the token that lens printed.\n")
        elif not _local(request.host, listener.host):
            return web.Response(status=403, text=f"Open {listener.url}; this page is for this machine only.\n")
        return await handler(request)

    async def harden(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)

    app = web.Application(middlewares=[guard])
    app.on_response_prepare.append(harden)
    return app


def prefix_of(listener: Listener) -> str:
    """What every route begins with."""
    return f"/{listener.token}" if listener.token else ""


def html(text: str, *, status: int = 200) -> web.Response:
    """A page; what in it is no valid Unicode is replaced."""
    return web.Response(body=text.encode("utf-8", "replace"), content_type="text/html", charset="utf-8", status=status)


def _local(host: str, own: str) -> bool:
    """Whether a Host header names this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() in ("localhost", own):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
