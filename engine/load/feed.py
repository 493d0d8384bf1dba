"""Requests rendered ahead of their slots, so that nothing is rendered on the hot path. Bounded in count and in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Final, NamedTuple

from ..dialects import Prompt
from ..workload import Item, Session

AHEAD: Final = 512
AHEAD_BYTES: Final = 4 << 20
OUTPUT_ESTIMATE: Final = 256  # tokens, where nothing limits the reply
SLICE_NS: Final = 200_000  # rendering returns to the loop after this long


class Prepared(NamedTuple):
    """One slot with its request on the wire format. `offset_ns` counts from the start of the phase."""

    slot: int
    offset_ns: int
    target: int
    wire: bytes
    estimate_tokens: int  # prompt and output
    output_tokens: int  # of them, output
    session: Session | None
    asked_input_tokens: int  # what the workload asks for, 0 where it asks for nothing
    asked_output_tokens: int


Render = Callable[[int, Prompt], bytes]
Finish = Callable[[int, int, bytes], bytes]  # (target, slot, rendered) -> as it is sent


class Feed:
    """One worker's share of one phase: its slots in order, each joined with its item and rendered."""

    def __init__(
        self,
        slots: Iterator[tuple[int, int]],
        items: Iterator[Item],
        render: Render,
        *,
        planned: int | None = None,
        workers: int = 1,
        finish: Finish | None = None,
    ) -> None:
        self._planned = planned  # slots of the phase over all workers, None where that is not known
        self._workers = workers
        self._slots = slots
        self._items = items
        self._render = render
        self._finish = finish  # what is different in each request, of equal prompts too
        self._ready: deque[Prepared] = deque()
        self._bytes = 0
        self._last: dict[int, tuple[Prompt, bytes]] = {}
        self.exhausted = False  # of slots; `ready` may still hold some
        self.late = 0  # requests that had to be rendered when they were due

    def peek(self) -> Prepared | None:
        """The next slot, left in the feed. None when the share is used up."""
        if not self._ready:
            if not self._prepare():
                return None
            self.late += 1
        return self._ready[0]

    def pop(self) -> Prepared:
        """Takes the slot that peek() showed."""
        prepared = self._ready.popleft()
        self._bytes -= len(prepared.wire)
        return prepared

    def fill(self) -> bool:
        """Renders ahead for one slice of time. True when there is more to do."""
        until = monotonic_ns() + SLICE_NS
        while len(self._ready) < AHEAD and self._bytes < AHEAD_BYTES:
            if not self._prepare():
                return False
            if monotonic_ns() > until:
                return True
        return False

    @property
    def low(self) -> bool:
        """Is it time to render ahead again?"""
        return not self.exhausted and len(self._ready) < AHEAD // 2 and self._bytes < AHEAD_BYTES // 2

    def rest(self) -> int:
        """How many slots are left; uses them up."""
        if self._ready and self._planned is not None:  # a week at 1000/s is 600 million slots: not to be walked
            left = -(-(self._planned - self._ready[0].slot) // self._workers)
        else:
            left = len(self._ready) + sum(1 for _ in self._slots)
        self._ready.clear()
        self.exhausted = True
        return left

    def _prepare(self) -> bool:
        if self.exhausted:
            return False
        slot = next(self._slots, None)
        if slot is None:
            self.exhausted = True
            return False
        item = next(self._items)
        prompt, wire = self._last.get(item.target, (None, b""))
        if item.prompt is not prompt:
            wire = self._render(item.target, item.prompt)
            self._last[item.target] = (item.prompt, wire)
        if self._finish is not None:
            wire = self._finish(item.target, slot[0], wire)
        asked = item.prompt.max_tokens or 0
        estimate = item.estimate_tokens
        output = asked or min(OUTPUT_ESTIMATE, estimate)
        self._ready.append(Prepared(*slot, item.target, wire, estimate, output, item.session, item.asked_tokens, asked))
        self._bytes += len(wire)
        return True
