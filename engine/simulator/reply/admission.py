"""What a request gets: a page, a refusal, a fault, a slot in the queue or a reply. No sockets here.

Order: route, API key, the request itself, the fault drawn for it, RPM and TPM, service slots. Each request gets a row
in the log and is counted by status and by fault, whatever becomes of it.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Final

from .. import faults, pages
from ..framing import fill, head_of, plain
from ..log import Row
from ..providers import CHAT, route
from ..providers.provider import Ask, Invalid, Outline, Provider, Route
from ..stats import SLOT
from .client import Client, Request
from .reply import SPLIT_TOKENS, Reply
from .service import Service
from .template import Templates

ROUTES_KEPT: Final = 4096
Headers = Iterable[tuple[str, str]]


class Admission:
    """Decides for one process. `on_first` is called with the arrival time of the first request."""

    def __init__(
        self, service: Service, *, require_key: str | None = None, on_first: Callable[[int], None] | None = None
    ) -> None:
        self._service = service
        self._script = service.script
        self._on_first = on_first
        self._key = require_key.encode() if require_key is not None else None
        self._templates = Templates()
        self._routes: dict[bytes, tuple[Provider, Route] | None] = {}
        self._id_prefix = os.urandom(3).hex()
        self._arrived = 0

    def receive(self, client: Client, request: Request) -> None:
        """Answers a request, now or by a reply that runs."""
        service = self._service
        if request.method in (b"GET", b"HEAD"):
            client.send(pages.answer(service.script, service.stats, request.url))
            _end(client, keep_alive=request.keep_alive)
            return
        index = self._arrived * service.stats.processes + service.rank
        if not self._arrived and self._on_first:
            self._on_first(request.arrival_ns)
        self._arrived += 1
        service.stats.mine[SLOT["requests"]] += 1
        row = Row(
            id=f"{self._id_prefix}{index:010x}",
            arrival_ns=request.arrival_ns,
            first_byte_ns=request.first_byte_ns,
            clock="kernel" if request.kernel else "user",
            connection=client.number * service.stats.processes + service.rank,
            turn=request.turn,
            path=request.url.decode("latin-1"),
            received_bytes=request.received_bytes,
        )
        client.late_writes = client.sent_bytes = 0
        found = self._route(request.url)
        if found is None:
            row.fault = "not_found"
            self._refuse(client, request, row, CHAT, 404, f"Invalid URL ({request.method.decode()} {row.path})")
        else:
            self._decide(client, request, row, found[0], found[1], index)

    def _route(self, url: bytes) -> tuple[Provider, Route] | None:
        try:
            return self._routes[url]
        except KeyError:
            pass
        if len(self._routes) >= ROUTES_KEPT:
            self._routes.clear()
        path, _, query = url.decode("latin-1").partition("?")
        found = self._routes[url] = route(path, query)
        return found

    def _decide(self, client: Client, request: Request, row: Row, provider: Provider, where: Route, index: int) -> None:
        row.dialect = provider.name
        if self._key is not None and not self._has_key(request.headers):
            row.fault = "bad_key"
            self._refuse(client, request, row, provider, 401, "Incorrect API key provided")
            return
        body = b"".join(request.body)
        try:
            ask = provider.ask(body, where)
        except Invalid as error:
            row.fault = "bad_request"
            self._refuse(client, request, row, provider, 400, str(error))
            return
        row.model, row.stream, row.prompt_tokens = ask.model, ask.stream, ask.prompt_tokens
        row.fault = self._fault(request.headers, index)
        if self._breaks(client, request, row, provider):
            return
        outline = self._outline(provider, ask, row.fault, index)
        wait_s, limit = self._service.over_limit(ask.prompt_tokens + outline.output_tokens, request.arrival_ns)
        if wait_s:
            row.fault = limit
            retry = faults.retry_headers("seconds", max(1, round(wait_s + 0.5)), wall_s=time.time())
            self._refuse(client, request, row, provider, 429, f"Rate limit reached on {limit.upper()}", retry)
            return
        rendering = self._templates.rendering(provider, outline)
        keep_alive = request.keep_alive and self._script.keep_alive
        variants = self._script.distinct_replies
        variant = b"%08x" % (zlib.crc32(body) if variants is None else index % variants)
        reply = Reply(
            self._service,
            client,
            row=row,
            rendering=rendering,
            index=index,
            keep_alive=keep_alive,
            variant=variant,
        )
        client.reply = reply
        entered = self._service.enter(reply)
        if entered is None:
            client.reply = None
            row.fault = "queue_full"
            self._refuse(client, request, row, provider, 503, "The engine is currently overloaded")
        elif entered:
            reply.begin(request.arrival_ns)

    def _fault(self, headers: dict[bytes, bytes], index: int) -> str:
        """The fault drawn for the request, or the one its `x-sim-fault` header asks for."""
        asked = headers.get(b"x-sim-fault")
        if asked is not None and (name := asked.decode("latin-1")) in faults.FAULTS:
            return name
        return self._service.draws.fault(index)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return self._key in (bearer, headers.get(b"x-api-key"), headers.get(b"api-key"), headers.get(b"x-goog-api-key"))

    def _breaks(self, client: Client, request: Request, row: Row, provider: Provider) -> bool:
        """Does what a fault does instead of a reply; False if there is to be a reply."""
        # An error in mid-stream is a plain 500 where there is no stream.
        plain_error = row.fault == faults.ERROR_EVENT and not row.stream
        refusal = faults.REFUSALS.get("500" if plain_error else row.fault)
        if refusal:
            headers = faults.retry_headers(refusal.retry, self._script.retry_after_s, wall_s=time.time())
            self._refuse(client, request, row, provider, refusal.status, refusal.message, headers)
        elif row.fault == faults.EMPTY:
            self._service.record(row, client)
            client.finish()
        elif row.fault == faults.BAD_HTTP:
            client.send(b"HTTP/1.1 two hundred\r\nthis is no header\r\n\r\n")
            self._service.record(row, client)
            client.finish()
        else:
            return False
        return True

    def _outline(self, provider: Provider, ask: Ask, fault: str, index: int) -> Outline:
        """What the reply will say, by the script's draws, the request's limits and the fault's quirk."""
        script = self._script
        visible, reasoning, finish = (
            self._service.draws.tokens.at(index),
            self._service.draws.reasoning.at(index),
            "stop",
        )
        if fault == faults.SPLIT:
            visible, reasoning = min(visible, SPLIT_TOKENS), min(reasoning, SPLIT_TOKENS)
        if script.obey_max_tokens and ask.max_tokens is not None and ask.max_tokens < visible + reasoning:
            reasoning = min(reasoning, ask.max_tokens)
            visible, finish = ask.max_tokens - reasoning, "length"
        return Outline(
            model=ask.model,
            prompt_tokens=ask.prompt_tokens,
            cached_tokens=int(ask.prompt_tokens * script.cached_share) if index >= script.cached_after else 0,
            reasoning=reasoning,
            visible=visible,
            finish="filter" if fault == faults.CONTENT_FILTER else finish if script.finish == "true" else script.finish,
            usage=self._usage(ask.usage, fault),
            role_chunk=script.role_chunk,
            per_event=max(1, visible + reasoning) if fault == faults.ONE_CHUNK else script.tokens_per_event,
            newline=b"\r\n" if fault == faults.CRLF or provider.crlf else b"\n",
            usage_factor=script.usage_factor,
        )

    def _usage(self, asked: bool, fault: str) -> str:
        if fault == faults.NO_USAGE or self._script.usage == "never" or (self._script.usage == "asked" and not asked):
            return "none"
        return "in_finish" if self._script.usage == "in_finish" else "apart"

    def _refuse(
        self,
        client: Client,
        request: Request,
        row: Row,
        provider: Provider,
        status: int,
        message: str,
        headers: Headers = (),
    ) -> None:
        """Answers with an HTTP error in the API's own form."""
        keep_alive = request.keep_alive and self._script.keep_alive
        now_ns = time.monotonic_ns()
        body = fill(plain(provider.refusal(status, message)), row.id.encode(), now_ns)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (*headers, (provider.id_header, row.id)))
        lines += self._service.limit_headers()
        head = head_of(status, "application/json", keep_alive=keep_alive, length=len(body))
        client.send(head + lines.encode() + b"\r\n" + body)
        row.status, row.completed = status, True
        row.head_sent_ns = row.end_sent_ns = now_ns
        self._service.record(row, client)
        _end(client, keep_alive=keep_alive)


def _end(client: Client, *, keep_alive: bool) -> None:
    """After a reply that was sent in one go."""
    if keep_alive:
        client.done()
    else:
        client.finish()
