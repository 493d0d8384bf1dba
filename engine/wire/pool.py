"""The connections of one target in one worker: reuse the youngest idle one, open another when there is none.

All policy is here. Dials and connections carry one request each and report how it ended; the pool keeps which of them
has which exchange (`busy`), and decides what becomes of both.

A reused connection that turns out dead before any byte of a reply arrived is stale: its request is sent again on a
new one and counted, and its clocks start with the new send. A target whose kept-alive connections keep dying
(llama.cpp announces keep-alive and closes) is not offered reuse any longer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Final

from ..dialects import OK, Dialect, Prompt
from ..plan.plan import Target
from ..plan.written import secrets
from ..records import record
from ..records.record import Outcome
from .connection import Connection, Context
from .dial import Dial
from .endpoint import Address, Endpoint
from .ends import IDLE, End
from .exact import ExactConnection
from .exchange import Exchange
from .reactor import Reactor

STALE_LIMIT: Final = 3  # in a row, without one reuse that worked
PROMPT_CLOSE_NS: Final = 100_000_000  # a connection closed this soon after its reply was never meant to be reused


class Pool:
    """All connections to one target. `idle` is ordered, youngest last, with the time since which each is idle.

    `sending` is called immediately before a request is handed to send(), `done` when an attempt has ended and its
    outcome and marks are set. `suspect` is asked about a kernel stamp that does not fit the clock; it returns the
    stamp to use and whether that is still the kernel's. `exact`: a tap holds clones, reads end where events end.
    `resolved` is called with a name's addresses, each time it was looked up.
    """

    def __init__(
        self,
        reactor: Reactor,
        target: Target,
        dialect: Dialect,
        endpoint: Endpoint,
        *,
        sending: Callable[[Exchange], None],
        done: Callable[[Exchange], None],
        suspect: Callable[[int, int], tuple[int, bool]],
        exact: bool = False,
        resolved: Callable[[Sequence[Address]], None] = lambda _: None,
    ) -> None:
        self.reactor = reactor
        self.target = target
        self.dialect = dialect
        self.endpoint = endpoint
        self.done = done
        self.secrets = tuple(secrets(target))
        self.context = Context(
            reactor,
            endpoint.where,
            target.stream,
            self.secrets,
            sending,
            suspect,
            self._ended,
            self._release,
            self._lost,
        )
        self._resolved = resolved
        self._connection = ExactConnection if exact else Connection
        self.busy: dict[Exchange, Dial | Connection] = {}
        self.idle: dict[Connection, int] = {}
        self.unresolved: list[Exchange] = []  # wait for the name's addresses
        self.lookup: asyncio.Task[None] | None = None
        self.stale_in_a_row = 0
        self.reuse_works = False  # it did at least once
        self.stale_resends = 0
        self._max_age_ns = target.max_connection_age_ns or 1 << 62

    def render(self, prompt: Prompt) -> bytes:
        """One request as it goes on the wire, head and body together."""
        return self.endpoint.encode(self.dialect.request(self.target, prompt))

    def send(self, exchange: Exchange) -> None:
        """Sends the request on an idle connection or a new one. Never waits; `done` is called when it is over."""
        while self.idle:
            # The youngest first: the old ones get idle long enough for the server to close them, and the pool shrinks to its need.
            connection, _ = self.idle.popitem()
            if monotonic_ns() - connection.opened_ns < self._max_age_ns:
                self.busy[exchange] = connection
                connection.reuse(exchange)
                return
            connection.close()
        self._open(exchange)

    def abandon(self, exchange: Exchange, outcome: Outcome, message: str) -> bool:
        """Ends a request wherever it is: on its connection, or still waiting for a name to be resolved.

        False if it is not here: between two attempts, or waiting for a limit.
        """
        holder = self.busy.get(exchange)
        if holder is not None:
            holder.fail(exchange, outcome, message)
        elif exchange in self.unresolved:
            self.unresolved.remove(exchange)
            exchange.fail(outcome, message, monotonic_ns())
            self.done(exchange)
        else:
            return False
        return True

    def close(self) -> None:
        while self.idle:
            self.idle.popitem()[0].close()
        if self.lookup is not None:
            self.lookup.cancel()

    # --- what dials and connections report ------------------------------------------------------------------------

    def _connected(self, dial: Dial) -> None:
        exchange = dial.exchange
        if not exchange.send_ns:
            exchange.waited_ns += (exchange.tls_done_ns or exchange.tcp_done_ns) - exchange.connect_start_ns
        connection = self._connection(self.context, dial.socket, dial.tls, exchange.tcp_done_ns)
        self.busy[exchange] = connection
        connection.send(exchange)

    def _not_connected(self, exchange: Exchange) -> None:
        del self.busy[exchange]
        self.done(exchange)

    def _ended(self, connection: Connection, exchange: Exchange, end: End) -> None:
        del self.busy[exchange]
        if end is IDLE:
            self._release(connection)
        elif exchange.outcome is not OK and self._stale(connection, end):
            # Not by the retry law: the request never reached the server, RFC 9110 9.2.2 lets a client repeat it unasked.
            self._resend(exchange)
            return
        self.done(exchange)

    def _stale(self, connection: Connection, end: End) -> bool:
        """Was the connection dead before the request? A server that has not once kept one for a second request was
        closing this one anyhow, even if its kernel acknowledged the request."""
        return end is End.STALE or (end is End.UNANSWERED and connection.reused and not self.reuse_works)

    def _release(self, connection: Connection) -> None:
        """Takes a connection back whose reply is complete."""
        # A first reply proves nothing: servers that close after each reply would pass for ones that keep alive.
        if connection.reused:
            self.stale_in_a_row = 0
            self.reuse_works = True
        if self.target.fresh_connections or self.stale_in_a_row >= STALE_LIMIT:
            connection.close()
        else:
            self.idle[connection] = monotonic_ns()

    def _lost(self, connection: Connection) -> None:
        # Closed right behind the reply: this server does not keep connections, whatever its headers say.
        if monotonic_ns() - self.idle.pop(connection) < PROMPT_CLOSE_NS:
            self.stale_in_a_row += 1

    # --- new connections ------------------------------------------------------------------------------------------

    def _resend(self, exchange: Exchange) -> None:
        """Sends a request again whose reused connection had died; all its marks start anew, `intended` stays."""
        self.stale_in_a_row += 1
        self.stale_resends += 1
        exchange.flags = exchange.flags & ~record.REUSED | record.STALE_RESENT
        exchange.outcome, exchange.error = OK, ""
        if exchange.send_ns:
            exchange.waited_ns += monotonic_ns() - exchange.send_ns  # for the dead connection, not for the client
        exchange.send_ns = exchange.end_ns = 0
        exchange.sent_bytes = 0
        while self.idle:  # they are as old as the dead one
            self.idle.popitem()[0].close()
        self._open(exchange)

    def _open(self, exchange: Exchange) -> None:
        # Before the lookup: dns_ms counts from here, also for a request that waits for another one's lookup.
        exchange.connect_start_ns = monotonic_ns()
        exchange.dns_done_ns = exchange.tcp_done_ns = exchange.tls_done_ns = 0
        if self.endpoint.fresh:
            self._dial(exchange)
            return
        self.unresolved.append(exchange)
        if self.lookup is None:
            # One lookup for all that wait: getaddrinfo() runs in a thread, and a burst would start as many.
            self.lookup = asyncio.get_running_loop().create_task(self._resolve())

    def _dial(self, exchange: Exchange) -> None:
        dial = Dial(self.reactor, self.endpoint, exchange, ready=self._connected, failed=self._not_connected)
        self.busy[exchange] = dial
        dial.connect()

    async def _resolve(self) -> None:
        endpoint = self.endpoint
        failure = ""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                endpoint.next_host, endpoint.next_port, type=socket.SOCK_STREAM
            )
            endpoint.resolved(list(found))
            self._resolved(endpoint.addresses)
        except OSError as error:
            failure = f"cannot resolve {endpoint.next_host}: {error.strerror or error}"
        self.lookup = None
        # Taken out first: done() may send the next request, which then begins a lookup of its own.
        waiting, self.unresolved = self.unresolved, []
        now = monotonic_ns()
        for exchange in waiting:
            if failure:
                exchange.fail(Outcome.CONNECT_DNS, failure, now)
                self.done(exchange)
            else:
                exchange.dns_done_ns = now
                self._dial(exchange)
