"""When a request takes too long, and which ones the plan aborts.

There is no timer per request: each exchange carries its `deadline_ns`, and one sweep over all of them is due at the
earliest. A deadline that moves back, because a request got its connection or its first token, is noticed by the sweep
that finds it too early; so the common case, a request that ends in time, costs one comparison.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..load.phase_run import NEVER
from ..plan.plan import Limits
from ..records.record import Outcome
from ..wire.exchange import Exchange


class Expired(NamedTuple):
    exchange: Exchange
    outcome: Outcome
    message: str


class Deadlines:
    """The limits of one plan. `sweep_ns` is when sweep() is due next, NEVER while nothing has a deadline.

    An attempt has `connect_ns` until its request is sent, and from then on `first_ns` until the first token.

    `tls` says of each target whether its connections use TLS: a limit that passes before the first byte was sent
    ended the TCP connection or the handshake.
    """

    __slots__ = ("_limits", "_seed", "_tls", "connect_ns", "first_ns", "sweep_ns")

    def __init__(self, limits: Limits, seed: int, tls: Sequence[bool]) -> None:
        self.sweep_ns = NEVER
        self._limits = limits
        self._seed = seed
        self._tls = tls
        self.connect_ns = limits.connect_timeout_ns
        # The total limit also ends a request that has no first token yet, whichever of the two is shorter.
        self.first_ns = min(limits.timeout_ns, limits.first_token_timeout_ns or limits.timeout_ns)

    def watch(self, exchange: Exchange, deadline_ns: int) -> bool:
        """Sets the deadline. True if the sweep is due earlier than before, so that the timer has to be set anew."""
        exchange.deadline_ns = deadline_ns
        # Later deadlines need no timer of their own: the sweep finds them when it comes by.
        if deadline_ns < self.sweep_ns:
            self.sweep_ns = deadline_ns
            return True
        return False

    def sweep(self, active: Collection[Exchange], now_ns: int) -> list[Expired]:
        """Those whose time is over, with their end set to `now_ns`. The next sweep is at the earliest deadline left."""
        expired: list[Expired] = []
        earliest = NEVER
        for exchange in active:
            deadline = exchange.deadline_ns
            # From the first token on only the total limit holds. It counts from the send of this attempt, not from the token.
            if exchange.first_token_ns:
                deadline = exchange.deadline_ns = exchange.last_send_ns + self._limits.timeout_ns
            # 0: not watched, as between two attempts or while a rate limit holds it back.
            if deadline and deadline <= now_ns:
                exchange.end_ns = now_ns
                expired.append(Expired(exchange, *self._reason(exchange)))
            elif deadline:
                earliest = min(earliest, deadline)
        self.sweep_ns = earliest
        return expired

    def _reason(self, exchange: Exchange) -> tuple[Outcome, str]:
        limits = self._limits
        # last_send_ns is of this attempt; send_ns is of the first and would call a failed reconnect a slow reply.
        if not exchange.last_send_ns:
            missing = "TLS session" if exchange.tcp_done_ns and self._tls[exchange.target] else "connection"
            return Outcome.CONNECT_TIMEOUT, f"no {missing} within {limits.connect_timeout_ns / 1e9:g} s"
        first = limits.first_token_timeout_ns
        if not exchange.first_token_ns and first is not None and first < limits.timeout_ns:
            return Outcome.TIMEOUT_FIRST_TOKEN, f"no first token within {first / 1e9:g} s"
        return Outcome.TIMEOUT_TOTAL, f"not complete within {limits.timeout_ns / 1e9:g} s"

    def cancels(self, exchange: Exchange) -> bool:
        """Does the plan abort this request? The same ones for a seed, however many workers there are."""
        share = self._limits.cancel_share
        if not share:
            return False
        # By seed, phase and request and not by a stream of draws: which ones are cancelled must not depend on which
        # worker has them, on restarts or on the order of events.
        draw = random.Random(f"cancel/{self._seed}/{exchange.phase}/{exchange.request}").random()
        return draw < share
