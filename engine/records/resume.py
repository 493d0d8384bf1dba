"""What the supervisor reads and writes in a dead worker's segment (format: records.layout). Without numpy."""

from __future__ import annotations

import mmap
from pathlib import Path

from .layout import (
    COMMITTED,
    COUNTER_WORDS,
    ENTRY_WORDS,
    HEAD,
    JOURNAL_WORDS,
    NUMBER_MASK,
    PAGE,
    PHASE,
    PHASE_SHIFT,
    REQUEST,
    SEQUENCE_MASK,
    SLOT_MASK,
    SLOTS,
    STATE_WORD,
    TAIL_WORDS,
    Counter,
    Geometry,
    Layout,
    State,
)
from .record import RECORD, SLOT_BYTES


def mark_dead(path: Path) -> None:
    """Records for the collector that the segment's worker is gone and nothing more will be written."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as memory, memoryview(memory).cast("Q") as words:
        words[STATE_WORD] = State.DEAD


def resume_point(path: Path) -> tuple[int, int]:
    """(phase, first slot) at which the successor of a dead worker goes on: after the last slot that a record, drop or entry is of."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory, memoryview(memory) as view:
        geometry = Geometry(*HEAD.unpack_from(memory)[5:])
        layout = Layout(geometry)
        with view.cast("Q") as words:
            # No single word says where the worker was: it writes entry, counter, record and journal one after the other, and may
            # have died between any two. The furthest of them is right, as each is written only for a slot that is taken.
            points = [words[COUNTER_WORDS + Counter.NEXT_SLOT]]
            points += [
                _point_after((words[word] >> 1) - 1, words[word + 3] >> 16, 1)
                for word in range(layout.inflight_word, layout.drops_word, ENTRY_WORDS)
                # An entry without a record becomes `lost` or `unsent` in the collector: its slot must not be sent a second time.
                if words[word]
            ]
            # Runs of unsent slots have a record but neither entry nor counter.
            newest = _newest_offset(words, layout, geometry)
            if newest is not None:
                values = RECORD.unpack_from(memory, newest + 8)
                points.append(_point_after(values[REQUEST], values[PHASE], values[SLOTS]))
            request, phase, slots, total = words[JOURNAL_WORDS : JOURNAL_WORDS + 4]
            # Only a journal whose drop reached the table counts: the other one describes a drop that did not happen.
            if 0 < total <= sum(words[layout.drops_word : layout.drops_word + layout.drops]):
                points.append(_point_after(request, phase, slots))
    last = max(points)
    return last >> PHASE_SHIFT, last & (1 << PHASE_SHIFT) - 1


def budget_left(path: Path) -> int | None:
    """Pico-USD that a dead worker had left to spend; what it had reserved counts as spent. None without a budget."""
    with path.open("rb") as file:
        file.seek(8 * (COUNTER_WORDS + Counter.BUDGET_LEFT))
        left = int.from_bytes(file.read(8), "little")
    # Stored plus one, so that 0, the state of a fresh page, is no budget of 0.
    return left - 1 if left else None


def _point_after(request: int, phase: int, slots: int) -> int:
    """Where the share goes on after a request; a run of unsent slots is the rest of the share."""
    return phase << PHASE_SHIFT | (SLOT_MASK if slots > 1 else (request & SLOT_MASK) + 1)


def _newest_offset(words: memoryview, layout: Layout, geometry: Geometry) -> int | None:
    """The byte where the slot of the newest committed record begins. Walks from the tail: what was written since."""
    lane, mask = layout.requests // 8, geometry.requests - 1
    # The writer's head died with it. From the tail on the commit numbers rise by one; the first that does not fit is older.
    head = words[TAIL_WORDS]

    def commits(number: int) -> bool:
        commit: int = words[lane + (number - 1 & mask) * (SLOT_BYTES // 8)]
        return commit & SEQUENCE_MASK == COMMITTED | number & NUMBER_MASK

    while commits(head + 1):
        head += 1
    return (lane * 8 + (head - 1 & mask) * SLOT_BYTES) if commits(head) else None
