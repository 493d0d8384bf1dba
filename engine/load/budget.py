"""One worker's share of the money: what is in flight is reserved before it is sent, so that a run never overspends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records.record import UNKNOWN

PICO_PER_USD = 10**12

TokenPrice = tuple[int, int]  # pico-USD per input and per output token


class Budget:
    """`reserve` before a request, `settle` after it. Cached tokens are reserved and settled as plain ones: the books
    of the collector know the exact cost, this only has to stay below it."""

    def __init__(self, pico_usd: int, prices: Sequence[TokenPrice], told: Callable[[int], None]) -> None:
        self._left = pico_usd
        self._prices = prices
        self._told = told  # hears what is left after every change
        told(pico_usd)

    def reserve(self, target: int, input_tokens: int, output_tokens: int) -> int | None:
        """Takes the estimated cost; gives it, or None when there is not enough left."""
        per_input, per_output = self._prices[target]
        cost = input_tokens * per_input + output_tokens * per_output
        if cost > self._left:
            return None
        self._change(-cost)
        return cost

    def settle(self, target: int, reserved: int, input_tokens: int, output_tokens: int) -> None:
        """Puts the real cost in the place of the reserved one; where the provider told no usage, the estimate stands."""
        if input_tokens == UNKNOWN or output_tokens == UNKNOWN:
            return
        per_input, per_output = self._prices[target]
        self._change(reserved - (input_tokens * per_input + output_tokens * per_output))

    def refund(self, reserved: int) -> None:
        """The request was never sent, or refused without usage."""
        self._change(reserved)

    def _change(self, by: int) -> None:
        self._left += by
        self._told(max(0, self._left))
