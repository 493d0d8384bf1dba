"""What a worker may send: its share of the budget and of the rate limits, charged by estimate and settled by usage."""

from __future__ import annotations

from time import monotonic_ns

from ..load.budget import PICO_PER_USD, Budget
from ..load.limits import buckets_of
from ..records.layout import Counter
from ..records.record import UNKNOWN, Outcome
from ..runs.control import Share
from ..wire.exchange import Exchange


class Allowance:
    """Money and requests per minute of one worker. `counters` are the segment's: what is left of the budget is there."""

    __slots__ = ("_budget", "_limiters", "metered")

    def __init__(self, share: Share, counters: memoryview) -> None:
        plan = share.plan
        self._limiters = [buckets_of(plan, target, share.worker, share.workers) for target in plan.targets]
        if share.incarnation:  # the one before may have spent its burst a moment ago
            for limiter, _ in (pair for pairs in self._limiters for pair in pairs):
                limiter.empty(monotonic_ns())
        self._budget: Budget | None = None
        limit = plan.limits.budget_usd
        if limit is not None:
            left = int(limit * PICO_PER_USD) // share.workers if share.budget_left is None else share.budget_left

            def report_left(pico_usd: int) -> None:
                counters[int(Counter.BUDGET_LEFT)] = pico_usd + 1

            self._budget = Budget(left, share.prices, report_left)
        self.metered = self._budget is not None or any(self._limiters)  # has settle() anything to do?

    def reserve(self, target: int, input_tokens: int, output_tokens: int) -> int | None:
        """Reserves the money for one request; returns pico-USD, 0 without a budget, None when not enough is left."""
        return 0 if self._budget is None else self._budget.reserve(target, input_tokens, output_tokens)

    def limited(self, target: int) -> bool:
        """Has this target a rate limit?"""
        return bool(self._limiters[target])

    def wait_ns(self, target: int, tokens: int, now_ns: int) -> int:
        """Takes one request of `tokens` tokens out of the rate limits; returns how long to wait before sending it."""
        wait = 0
        for limiter, counts_tokens in self._limiters[target]:
            wait = max(wait, limiter.take(now_ns, tokens if counts_tokens else 1))
        return wait

    def settle(self, exchange: Exchange) -> None:
        """Replaces what was charged by estimate by what the request really used."""
        reply = exchange.reply
        if self._budget is not None:
            if exchange.outcome is Outcome.OK:
                self._budget.settle(exchange.target, exchange.reserved, reply.input_tokens, reply.output_tokens)
            elif not exchange.token_events:
                self._budget.refund(exchange.reserved)
        if reply.input_tokens != UNKNOWN and reply.output_tokens != UNKNOWN:
            for limiter, counts_tokens in self._limiters[exchange.target]:
                if counts_tokens:
                    limiter.settle(exchange.estimate_tokens, reply.input_tokens + reply.output_tokens)
