"""Which record is for which slot: in file order, shuffled, drawn at random or by weight. Endless, and the same for any
number of workers.

Files up to HELD_BYTES are held in memory, and every order is exact. Larger ones are streamed in constant memory:

- sequential: slot i gets record i modulo the number of records;
- shuffle: every pass takes every record once. Blocks of 64 KiB are visited in a pseudo-random order and their records
  mixed in a buffer of MIXED_RECORDS / MIXED_BYTES. CSV tables and JSON arrays cannot be entered in the middle, so they
  are read in order and only the buffer mixes them;
- random: as shuffle; held files are drawn from independently, with replacement;
- weights: only for held files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final, Protocol

from ..errors import PlanError
from .draw import M64, STEP_ROW, Permutation, Weighted, key_of, mix, unit
from .files import Raw, Records

HELD_BYTES: Final = 8 << 20
MIXED_RECORDS: Final = 4096
MIXED_BYTES: Final = 2 << 20

Dealt = tuple[int, int, Raw]  # slot, place, raw record
Pass = Iterator[tuple[int, Raw]]


class Deck(Protocol):
    def deal(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Dealt]:
        """The records for the slots worker, worker + workers, ... that are >= first. Never ends."""


def slots(worker: int, workers: int, first: int) -> Iterator[int]:
    """The slots of one worker from `first` on."""
    return count(first + (worker - first) % workers, workers)


def deck_of(records: Records, order: str, seed: int, keep: Callable[[Pass], Pass] = iter) -> Deck:
    """The file's records in `order` (Workload.order); only those that `keep` lets through count as records."""
    if records.size <= HELD_BYTES:
        return Held(list(keep(records.ordered())), order, seed, records.path)
    if order == "sequential":
        return Streamed(lambda _: keep(records.ordered()), records.path)
    return Streamed(lambda key: mixed(keep(records.scattered(key)), key), records.path, key_of(seed, "shuffle"))


class Held:
    """Records in memory."""

    def __init__(self, rows: list[tuple[int, Raw]], order: str, seed: int, path: str) -> None:
        if not rows:
            raise PlanError(f"{path} holds no records")
        self.rows = rows
        self._order = order
        self._seed = seed
        self._weighted: Weighted | None = None

    def weigh(self, weights: Sequence[float]) -> None:
        """Draws from now on in proportion to `weights`, one a row: evenly spread if sequential, else independently."""
        self._weighted = Weighted(weights)

    def deal(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Dealt]:
        index = self._indices(phase)
        rows = self.rows
        for slot in slots(worker, workers, first):
            yield slot, *rows[index(slot)]

    def _indices(self, phase: int) -> Callable[[int], int]:
        size, weighted = len(self.rows), self._weighted
        key = key_of(self._seed, "rows", phase)
        if weighted is not None:
            if self._order == "sequential":
                return lambda slot: weighted.pick(unit(slot * STEP_ROW + key & M64))
            return lambda slot: weighted.pick(unit(mix(key ^ slot)))
        if self._order == "sequential":
            return lambda slot: slot % size
        if self._order == "random":
            return lambda slot: mix(key ^ slot) * size >> 64
        return _Shuffled(size, key)


class _Shuffled:
    """Every pass over the rows in its own order. Slots must not go back to an earlier pass often: it is made anew."""

    __slots__ = ("_key", "_order", "_size", "_turn")

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._key = key
        self._turn = -1
        self._order = Permutation(size, key)

    def __call__(self, slot: int) -> int:
        turn, i = divmod(slot, self._size)
        if turn != self._turn:
            self._turn, self._order = turn, Permutation(self._size, mix(self._key ^ turn))
        return self._order(i)


class Streamed:
    """Records read pass by pass. `one_pass(key)` reads the file once, in an order that depends on the key only."""

    def __init__(self, one_pass: Callable[[int], Pass], path: str, key: int = 0) -> None:
        self._one_pass = one_pass
        self._path = path
        self._key = key

    def deal(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Dealt]:
        slot = next(slots(worker, workers, first))
        turn = begun = 0  # passes so far, and the slot that this one's first record belongs to
        while True:
            at = begun
            for place, raw in self._one_pass(key_of(self._key, phase, turn)):
                if at == slot:
                    yield slot, place, raw
                    slot += workers
                at += 1
            if at == begun:
                raise PlanError(f"{self._path} holds no records")
            passes = (slot - begun) // (
                at - begun
            )  # at least this one; whole passes without a slot of ours are skipped
            turn += passes
            begun += passes * (at - begun)


def mixed(records: Pass, key: int) -> Pass:
    """The records out of order, through a buffer of bounded size: in goes the next one, out comes any."""
    uniform = random.Random(key).random
    buffer: list[tuple[int, Raw]] = []
    held_bytes = 0

    def take() -> tuple[int, Raw]:
        i = int(uniform() * len(buffer))
        buffer[i], buffer[-1] = buffer[-1], buffer[i]
        return buffer.pop()

    for record in records:
        buffer.append(record)
        held_bytes += len(record[1])
        while len(buffer) > MIXED_RECORDS or (held_bytes > MIXED_BYTES and len(buffer) > 1):
            taken = take()
            held_bytes -= len(taken[1])
            yield taken
    while buffer:
        yield take()
