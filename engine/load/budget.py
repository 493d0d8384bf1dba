"""One worker's share of the money: what is in flight is reserved before it is sent, so that a run never overspends.

A reply that nothing limits can cost more than was reserved for it. From then on that much is reserved for each request
of its target, so that what is overspent is at most what was in flight before the first such reply ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records.record import UNKNOWN

PICO_PER_USD = 10**12

TokenPrice = tuple[int, int]  # pico-USD per input and per output token


class Budget:
    """`reserve` before a request, `settle` after it. Cached tokens are reserved and settled as plain ones: the totals
    of the collector have the exact cost, this only has to stay below it."""

    def __init__(self, pico_usd: int, prices: Sequence[TokenPrice], on_change: Callable[[int], None]) -> None:
        self._left = pico_usd
        self._prices = prices
        self._dearest = [0] * len(prices)  # replies that cost more than was reserved, by target
        self._on_change = on_change  # called with what is left after every change
        on_change(pico_usd)

    def reserve(self, target: int, input_tokens: int, output_tokens: int) -> int | None:
        """Takes the estimated cost; returns it, or None when there is not enough left."""
        per_input, per_output = self._prices[target]
        cost = max(input_tokens * per_input + output_tokens * per_output, self._dearest[target])
        if cost > self._left:
            return None
        self._change(-cost)
        return cost

    def settle(self, target: int, reserved: int, input_tokens: int, output_tokens: int) -> None:
        """Replaces the reserved cost by the real one; where the provider sent no usage, the estimate stands."""
        if input_tokens == UNKNOWN or output_tokens == UNKNOWN:
            return
        per_input, per_output = self._prices[target]
        cost = input_tokens * per_input + output_tokens * per_output
        if cost > reserved:
            self._dearest[target] = max(self._dearest[target], cost)
        self._change(reserved - cost)

    def refund(self, reserved: int) -> None:
        """The request was never sent, or refused without usage."""
        self._change(reserved)

    def _change(self, by: int) -> None:
        self._left += by
        self._on_change(max(0, self._left))
