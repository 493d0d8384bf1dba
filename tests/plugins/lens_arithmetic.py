"""An example of a workload in a package of its own: sums to calculate, of numbers up to the option `limit`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from llm_latency_lens import Ask, PlanError, Prompt, slots


class Sums:
    """A different sum for every slot, the same for the same seed."""

    def __init__(self, options: Mapping[str, Any], seed: int) -> None:
        self._limit = options.get("limit", 100)
        if not isinstance(self._limit, int) or self._limit < 1:
            raise PlanError(f"options.limit must be a number above 0, got {self._limit!r}")
        self._seed = seed

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        for slot in slots(worker, workers, first):
            chance = random.Random(f"{self._seed}/{phase}/{slot}")
            text = f"What is {chance.randint(1, self._limit)} + {chance.randint(1, self._limit)}?"
            yield Ask(slot, Prompt(({"role": "user", "content": text},)))
