"""Which target a slot goes to: by weight, spread as evenly as any order can be."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan.plan import Target
from .draw import M64, STEP_TARGET, Weighted, key_of, unit, usable_weights


class Mix:
    """`mix(slot)` is the index of the slot's target.

    Slot i looks at the fraction of i * 1/g + offset(seed) (g irrational): an additive recurrence, whose counts stay
    within O(log n) of n * share for every n, at random they would be O(sqrt n) off.
    """

    __slots__ = ("_key", "_one", "_weighted")

    def __init__(self, targets: Sequence[Target], seed: int) -> None:
        weights = [target.weight for target in targets]
        usable_weights(weights, "targets[].weight")
        self._weighted = Weighted(weights)
        self._one = len(targets) == 1
        self._key = key_of(seed, "mix")

    def __call__(self, slot: int) -> int:
        if self._one:
            return 0
        return self._weighted.pick(unit(slot * STEP_TARGET + self._key & M64))
