"""What a request gets: a page, a refusal, a fault, a place in the queue or a reply. No sockets here.

Order: route, API key, the request itself, the fault drawn for it, RPM and TPM, service slots. Each request gets a row
in the log and is counted by status and by fault, whatever becomes of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from . import faults, pages
from .connection import Connection, Request
from .framing import FRAMINGS, fill, plain
from .heads import head_of
from .limits import Bucket, Slots
from .log import RequestLog, Row
from .pacer import Pacer
from .providers import Ask, Invalid, Outline, Provider, Route
from .providers.table import CHAT, route
from .reply import SPLIT_TOKENS, Reply
from .script import Draws, Script
from .stats import SLOT, Stats
from .template import Templates

ROUTES_KEPT: Final = 4096
Headers = Iterable[tuple[str, str]]


class Admission:
    """Decides for one process; its replies run on the process's pacer."""

    def __init__(
        self,
        script: Script,
        stats: Stats,
        pacer: Pacer,
        *,
        rank: int = 0,
        log: RequestLog | None = None,
        log_tokens: bool = False,
        require_key: str | None = None,
    ) -> None:
        self.script = script
        self.stats = stats
        self.pacer = pacer
        self.draws = Draws(script)
        self.slots: Slots[Reply] = Slots(
            _share(script.concurrency, rank, stats.processes), _share(script.queue, rank, stats.processes)
        )
        self.log_tokens = log_tokens
        self.on_first: Callable[[int], None] = lambda first_ns: None
        self._rank = rank
        self._log = log
        self._key = require_key.encode() if require_key is not None else None
        self._rpm = Bucket(script.rpm / stats.processes, burst_s=script.limit_burst_s) if script.rpm else None
        self._tpm = Bucket(script.tpm / stats.processes, burst_s=script.limit_burst_s) if script.tpm else None
        self._templates = Templates()
        self._routes: dict[bytes, tuple[Provider, Route] | None] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._id_prefix = os.urandom(3).hex()
        self._arrived = 0

    def receive(self, connection: Connection, request: Request) -> None:
        """Answers a request, now or by a reply that runs."""
        if request.method in (b"GET", b"HEAD"):
            pages.answer(self, connection, request)
            return
        index = self._arrived * self.stats.processes + self._rank
        if not self._arrived:
            self.on_first(request.arrival_ns)
        self._arrived += 1
        self._count("requests")
        row = Row(
            id=f"{self._id_prefix}{index:010x}",
            arrival_ns=request.arrival_ns,
            first_byte_ns=request.first_byte_ns,
            clock="kernel" if request.kernel else "user",
            connection=connection.number * self.stats.processes + self._rank,
            turn=request.turn,
            path=request.url.decode("latin-1"),
            received_bytes=request.received_bytes,
        )
        connection.late_writes = connection.sent_bytes = 0
        found = self._route(request.url)
        if found is None:
            row.fault = "not_found"
            self._refuse(connection, request, row, CHAT, 404, f"Invalid URL ({request.method.decode()} {row.path})")
        else:
            self._decide(connection, request, row, found[0], found[1], index)

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

    def _decide(
        self, connection: Connection, request: Request, row: Row, provider: Provider, where: Route, index: int
    ) -> None:
        row.dialect = provider.name
        if self._key is not None and not self._has_key(request.headers):
            row.fault = "bad_key"
            self._refuse(connection, request, row, provider, 401, "Incorrect API key provided")
            return
        try:
            ask = provider.ask(b"".join(request.body), where)
        except Invalid as error:
            row.fault = "bad_request"
            self._refuse(connection, request, row, provider, 400, str(error))
            return
        row.model, row.stream, row.prompt_tokens = ask.model, ask.stream, ask.prompt_tokens
        row.fault = self._fault(request.headers, index)
        if self._breaks(connection, request, row, provider):
            return
        outline = self._outline(provider, ask, row.fault, index)
        wait_s, limit = self._over_limit(ask.prompt_tokens + outline.output_tokens, request.arrival_ns)
        if wait_s:
            row.fault = limit
            retry = faults.retry_headers("seconds", max(1, round(wait_s + 0.5)), wall_s=time.time())
            self._refuse(connection, request, row, provider, 429, f"Rate limit reached on {limit.upper()}", retry)
            return
        self._enter(
            Reply(
                self,
                connection,
                row=row,
                rendering=self._templates.rendering(provider, outline),
                index=index,
                keep_alive=request.keep_alive and self.script.keep_alive,
            ),
            request,
        )

    def _fault(self, headers: dict[bytes, bytes], index: int) -> str:
        """The fault drawn for the request, or the one its `x-sim-fault` header asks for."""
        asked = headers.get(b"x-sim-fault")
        if asked is not None and (name := asked.decode("latin-1")) in faults.FAULTS:
            return name
        return self.draws.fault(index)

    def _enter(self, reply: Reply, request: Request) -> None:
        entered = self.slots.enter(reply)
        connection = reply.connection
        assert connection
        if entered is None:
            reply.connection = None
            reply.row.fault = "queue_full"
            self._refuse(
                connection, request, reply.row, reply.rendering.provider, 503, "The engine is currently overloaded"
            )
            return
        connection.reply = reply
        if entered:
            reply.begin(request.arrival_ns)
        self._count_load()

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return self._key in (bearer, headers.get(b"x-api-key"), headers.get(b"api-key"), headers.get(b"x-goog-api-key"))

    def _breaks(self, connection: Connection, request: Request, row: Row, provider: Provider) -> bool:
        """Does what a fault does instead of a reply; False if there is to be a reply."""
        # An error in mid-stream is a plain 500 where there is no stream.
        plain_error = row.fault == faults.ERROR_EVENT and not row.stream
        refusal = faults.REFUSALS.get("500" if plain_error else row.fault)
        if refusal:
            headers = faults.retry_headers(refusal.retry, self.script.retry_after_s, wall_s=time.time())
            self._refuse(connection, request, row, provider, refusal.status, refusal.message, headers)
        elif row.fault == faults.EMPTY:
            self.book(row, connection)
            connection.finish()
        elif row.fault == faults.BAD_HTTP:
            connection.send(b"HTTP/1.1 two hundred\r\nthis is no header\r\n\r\n")
            self.book(row, connection)
            connection.finish()
        else:
            return False
        return True

    def _outline(self, provider: Provider, ask: Ask, fault: str, index: int) -> Outline:
        """What the reply will say, by the script's draws, the request's limits and the fault's quirk."""
        script = self.script
        visible, reasoning, finish = self.draws.tokens.at(index), self.draws.reasoning.at(index), "stop"
        if fault == faults.SPLIT:
            visible, reasoning = min(visible, SPLIT_TOKENS), min(reasoning, SPLIT_TOKENS)
        if ask.max_tokens is not None and ask.max_tokens < visible + reasoning:
            reasoning = min(reasoning, ask.max_tokens)
            visible, finish = ask.max_tokens - reasoning, "length"
        return Outline(
            model=ask.model,
            prompt_tokens=ask.prompt_tokens,
            cached_tokens=int(ask.prompt_tokens * script.cached_share),
            reasoning=reasoning,
            visible=visible,
            finish="filter" if fault == faults.CONTENT_FILTER else finish,
            usage=self._usage(ask.usage, fault),
            role_chunk=script.role_chunk,
            per_event=max(1, visible + reasoning) if fault == faults.ONE_CHUNK else script.tokens_per_event,
            newline=b"\r\n" if fault == faults.CRLF or provider.crlf else b"\n",
        )

    def _usage(self, asked: bool, fault: str) -> str:
        if fault == faults.NO_USAGE or self.script.usage == "never" or (self.script.usage == "asked" and not asked):
            return "none"
        return "in_finish" if self.script.usage == "in_finish" else "apart"

    def _over_limit(self, tokens: int, now_ns: int) -> tuple[float, str]:
        """(seconds to wait, which limit), or (0, "")."""
        for bucket, units, name in ((self._rpm, 1, "rpm"), (self._tpm, tokens, "tpm")):
            if bucket is not None and (wait_s := bucket.take(units, now_ns)):
                return wait_s, name
        return 0.0, ""

    # Heads and refusals.

    def head(self, row: Row, provider: Provider, *, keep_alive: bool, length: int | None = None) -> bytes:
        """The head of a 200 reply; without a length the body is chunked."""
        row.status = 200
        key = (provider.name, keep_alive, length)
        head = self._heads.get(key)
        if head is None:
            content_type = FRAMINGS[provider.framing][1] if length is None else "application/json"
            head = head_of(200, content_type, keep_alive=keep_alive, length=length)
            if len(self._heads) < ROUTES_KEPT:
                self._heads[key] = head
        extra = self._limit_headers() if self._rpm or self._tpm else ""
        return head + f"{provider.id_header}: {row.id}\r\n{extra}\r\n".encode()

    def _limit_headers(self) -> str:
        lines = ""
        for bucket, name in ((self._rpm, "requests"), (self._tpm, "tokens")):
            if bucket is not None:
                lines += f"x-ratelimit-limit-{name}: {bucket.per_minute:g}\r\n"
                lines += f"x-ratelimit-remaining-{name}: {bucket.remaining}\r\n"
                lines += f"x-ratelimit-reset-{name}: {bucket.full_in_s:.3f}s\r\n"
        return lines

    def _refuse(
        self,
        connection: Connection,
        request: Request,
        row: Row,
        provider: Provider,
        status: int,
        message: str,
        headers: Headers = (),
    ) -> None:
        """Answers with an HTTP error in the API's own form."""
        keep_alive = request.keep_alive and self.script.keep_alive
        now_ns = time.monotonic_ns()
        body = fill(plain(provider.refusal(status, message)), row.id.encode(), now_ns)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (*headers, (provider.id_header, row.id)))
        lines += self._limit_headers() if self._rpm or self._tpm else ""
        head = head_of(status, "application/json", keep_alive=keep_alive, length=len(body))
        connection.send(head + lines.encode() + b"\r\n" + body)
        row.status, row.completed = status, True
        row.head_sent_ns = row.end_sent_ns = now_ns
        self.book(row, connection)
        if keep_alive:
            connection.done()
        else:
            connection.finish()

    # The books.

    def ended(self, reply: Reply, connection: Connection) -> None:
        """A reply is over, completed or not: its place goes to the next in the queue."""
        self.book(reply.row, connection)
        if reply.row.service_ns is None:
            self.slots.forget(reply)
        else:
            self._hand_over()
        self._count_load()

    def _hand_over(self) -> None:
        waiter = self.slots.leave()
        if waiter is not None:
            waiter.begin(time.monotonic_ns())

    def book(self, row: Row, connection: Connection) -> None:
        """Counts a request that is over and writes its row."""
        row.sent_bytes, row.late_writes = connection.sent_bytes, connection.late_writes
        mine = self.stats.mine
        for name in ("events", "token_events", "tokens", "prompt_tokens", "completed", "client_closed"):
            mine[SLOT[name]] += getattr(row, name)
        mine[SLOT["bytes_sent"]] += row.sent_bytes
        mine[SLOT["streams"]] += row.stream and row.status == 200
        mine[SLOT[f"status {row.status}"]] += 1
        mine[SLOT[f"fault {row.fault}"]] += 1
        if self._log:
            self._log.add(row)
            mine[SLOT["log_rows"]] += 1

    def _count(self, name: str) -> None:
        self.stats.mine[SLOT[name]] += 1

    def _count_load(self) -> None:
        self.stats.mine[SLOT["running"]] = self.slots.running
        self.stats.mine[SLOT["waiting"]] = len(self.slots.waiting)


def _share(total: int | None, rank: int, processes: int) -> int | None:
    """One process's exact share of a limit."""
    return None if total is None else total // processes + (rank < total % processes)
