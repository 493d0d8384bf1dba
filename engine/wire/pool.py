"""The connections of one target in one worker: reuse the youngest idle one, open another when there is none.

A reused connection that turns out dead before any byte of a reply arrived is stale: its request goes again on a fresh
one, is counted, and its clocks start with the new send. A target whose kept-alive connections keep dying (llama.cpp
announces keep-alive and closes) is not offered reuse any longer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, Protocol

from ..dialects import Dialect, Reply
from ..dialects.outcomes import refusal
from ..dialects.table import framing_for
from ..plan.plan import Target, secrets
from ..records import record
from ..records.record import Outcome
from .connection import Connection
from .endpoint import Endpoint
from .exchange import Exchange
from .reactor import Reactor

STALE_LIMIT: Final = 3  # in a row, without one reuse that worked
PROMPT_CLOSE_NS: Final = 100_000_000  # a connection closed this soon after its reply was never meant to be reused


class Owner(Protocol):
    """Who the pool works for: the worker."""

    def sending(self, exchange: Exchange) -> None:
        """The request is handed to send() now."""

    def done(self, exchange: Exchange) -> None:
        """The attempt has ended; its outcome and marks are set."""

    def suspect(self, stamp_ns: int, now_ns: int) -> tuple[int, bool]:
        """A kernel stamp does not fit the clock: gives the stamp to use and whether it is still the kernel's."""


class Pool:
    """All connections to one target. `idle` is ordered, youngest last, with the time since which each is idle."""

    def __init__(self, reactor: Reactor, target: Target, dialect: Dialect, endpoint: Endpoint, owner: Owner) -> None:
        self.reactor = reactor
        self.target = target
        self.dialect = dialect
        self.endpoint = endpoint
        self.sending: Callable[[Exchange], None] = owner.sending
        self.done: Callable[[Exchange], None] = owner.done
        self.suspect = owner.suspect
        self.framing: Callable[[Reply, str], str] = framing_for
        self.idle: dict[Connection, int] = {}
        self.unresolved: list[Exchange] = []
        self.lookup: asyncio.Task[None] | None = None
        self.stale_in_a_row = 0
        self.reuse_works = False  # it did at least once
        self.stale_resends = 0
        self.secrets = tuple(secrets(target))
        self._max_age_ns = target.max_connection_age_ns or 1 << 62

    def send(self, exchange: Exchange) -> None:
        """Sends the request on an idle connection or a new one. Never waits; `done` is called when it is over."""
        while self.idle:
            connection, _ = self.idle.popitem()
            if monotonic_ns() - connection.opened_ns < self._max_age_ns:
                connection.reuse(exchange)
                return
            connection.close()
        self._open(exchange)

    def resend(self, exchange: Exchange) -> None:
        """Sends a request again whose reused connection had died; all its marks start anew, `intended` stays."""
        self.stale_in_a_row += 1
        self.stale_resends += 1
        exchange.flags = exchange.flags & ~record.REUSED | record.STALE_RESENT
        exchange.send_ns = exchange.end_ns = 0
        exchange.sent_bytes = 0
        while self.idle:  # they are as old as the dead one
            self.idle.popitem()[0].close()
        self._open(exchange)

    def release(self, connection: Connection) -> None:
        """Takes a connection back whose reply is complete."""
        if connection.reused:
            self.stale_in_a_row = 0
            self.reuse_works = True
        if self.target.fresh_connections or self.stale_in_a_row >= STALE_LIMIT:
            connection.close()
        else:
            self.idle[connection] = monotonic_ns()

    def discard(self, connection: Connection) -> None:
        """The server closed an idle connection."""
        if monotonic_ns() - self.idle.pop(connection) < PROMPT_CLOSE_NS:
            self.stale_in_a_row += 1

    def refusal(self, status: int, body: bytes) -> tuple[Outcome, str]:
        """What a reply that is not 2xx means, and its message with no secret in it."""
        return refusal(status, body, self.secrets)

    def try_next_address(self, connection: Connection) -> bool:
        """After a failed connect: goes on with the name's next address. False when there is none."""
        if not connection.untried:
            return False
        connection.close()
        connection.connect(connection.untried.pop(0))
        return True

    def abandon(self, exchange: Exchange, outcome: Outcome, message: str) -> None:
        """Ends a request wherever it is: on its connection, or still waiting for a name to be resolved."""
        if exchange.connection is not None:
            exchange.connection.fail(outcome, message)
            return
        self.unresolved.remove(exchange)
        self._refuse(exchange, outcome, message)

    def close(self) -> None:
        while self.idle:
            self.idle.popitem()[0].close()
        if self.lookup is not None:
            self.lookup.cancel()

    def _open(self, exchange: Exchange) -> None:
        exchange.connect_start_ns = monotonic_ns()
        exchange.dns_done_ns = exchange.tcp_done_ns = exchange.tls_done_ns = 0
        if self.endpoint.fresh:
            self._connect(exchange)
            return
        self.unresolved.append(exchange)
        if self.lookup is None:
            self.lookup = asyncio.get_running_loop().create_task(self._resolve())

    def _connect(self, exchange: Exchange) -> None:
        first, *others = self.endpoint.addresses
        connection = Connection(self, exchange)
        connection.untried = others
        try:
            connection.connect(first)
        except OSError as error:  # no socket to be had: EMFILE, ENFILE, ENOBUFS
            exchange.connection = None
            self._refuse(exchange, Outcome.CONNECT_REFUSED, f"cannot open a socket: {error.strerror}; see ulimit -n")

    async def _resolve(self) -> None:
        endpoint = self.endpoint
        failure = ""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                endpoint.next_host, endpoint.next_port, type=socket.SOCK_STREAM
            )
            endpoint.resolved(list(found))
        except OSError as error:
            failure = f"cannot resolve {endpoint.next_host}: {error.strerror or error}"
        self.lookup = None
        waiting, self.unresolved = self.unresolved, []
        now = monotonic_ns()
        for exchange in waiting:
            if failure:
                self._refuse(exchange, Outcome.CONNECT_DNS, failure)
            else:
                exchange.dns_done_ns = now
                self._connect(exchange)

    def _refuse(self, exchange: Exchange, outcome: Outcome, message: str) -> None:
        exchange.end_ns = monotonic_ns()
        exchange.outcome = outcome
        exchange.error = message
        self.done(exchange)
