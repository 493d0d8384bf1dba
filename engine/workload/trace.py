"""Recorded arrivals replayed: when each request came, how long its prompt and reply were, and which prefix it shared.

    Mooncake   JSONL {"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}
    Azure      CSV TIMESTAMP,ContextTokens,GeneratedTokens  (UTC times of day, 100 ns)
    BurstGPT   CSV Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,...  (seconds)

Traces hold no text, it is made up. A hash id stands for the same BLOCK_TOKENS tokens of text everywhere, so equal
prefixes of hash ids are equal prefixes of prompts; the last block may be cut. Lengths of 0 (BurstGPT's failed requests)
become 1: every arrival is replayed. Rows may be out of order by up to WINDOW rows: they are sorted on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from heapq import heappop, heappush, heappushpop
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import SECOND, Workload
from .ask import Ask
from .draw import M64, key_of, mix
from .index import Dataset, Raw, Records, Scan, Table, open_records
from .text import Prose

BLOCK_TOKENS: Final = 512
WINDOW: Final = 4096
CHECKED: Final = 1000


class Arrival(NamedTuple):
    """One request of a trace."""

    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


class Format(NamedTuple):
    """How one trace is read; both raise ValueError saying what is wrong with the row."""

    at_ns: Callable[[Raw], int]
    arrival: Callable[[Raw], Arrival]


class Trace:
    """The prompts and times of a trace file, in the order of its times."""

    def __init__(self, workload: Workload, seed: int, prose: Prose, *, window: int = WINDOW) -> None:
        if workload.order != "sequential":
            raise PlanError(f"a trace has its own order, it cannot be {workload.order!r} (workload.order)")
        self._records = open_records(workload.path, "workload.path")
        self._format = format_of(self._records)
        self._time_scale = workload.time_scale
        self._window = window
        self._dataset = Dataset(self._records, "sequential", seed, self._scan())
        self._prose = prose
        self._seed = seed
        self._block_key = key_of(seed, "block")
        # A unique prefix is for prompts that share nothing: then the hash ids are left aside.
        self._shared = workload.prefix != "unique"
        checked = 0
        for _, offset, raw in islice(self._by_time(), CHECKED):
            self._read(self._format.arrival, offset, raw)
            checked += 1
        if not checked:
            raise PlanError(f"{workload.path} holds no requests (workload.path)")

    def timestamps(self) -> Iterator[int]:
        """When each request of the trace is due, ns after the first one, stretched by `time_scale`. Ends with it."""
        begin: int | None = None
        for at_ns, _, _ in self._by_time():
            if begin is None:
                begin = at_ns
            yield round((at_ns - begin) * self._time_scale)

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        tail_key = key_of(self._seed, phase, "text")
        for slot, offset, raw in self._dataset.select(worker, workers, first, phase):
            arrival = self._read(self._format.arrival, offset, raw)
            text = self._text(arrival, tail_key ^ slot)
            prompt = Prompt(({"role": "user", "content": text},), None, arrival.output_tokens)
            yield Ask(slot, prompt, arrival.input_tokens)

    def _text(self, arrival: Arrival, tail_key: int) -> str:
        blocks: list[str] = []
        left = arrival.input_tokens
        for hash_id in arrival.hash_ids if self._shared else ():
            if left <= 0:
                break
            blocks.append(self._prose.text(mix(self._block_key ^ hash_id & M64), min(left, BLOCK_TOKENS)))
            left -= BLOCK_TOKENS
        if left > 0:
            blocks.append(self._prose.text(tail_key, left))
        return " ".join(blocks)

    def _scan(self) -> Scan:
        return ((offset, raw) for _, offset, raw in self._by_time())

    def _by_time(self) -> Iterator[tuple[int, int, Raw]]:
        """One pass over (time in ns, offset, raw) in the order of times; rows of equal times stay in file order.

        Sorted through a heap of WINDOW rows: to sort all of a large trace first would delay the first request.
        """
        heap: list[tuple[int, int, int, Raw]] = []
        last = None
        for number, (offset, raw) in enumerate(self._records.scan()):
            at_ns = self._read(self._format.at_ns, offset, raw)
            if last is not None and at_ns < last:
                raise PlanError(
                    f"{self._records.file.where(offset)}: its time is before that of a row more than {self._window} rows earlier;"
                    " sort the trace by time first"
                )
            if len(heap) < self._window:
                heappush(heap, (at_ns, number, offset, raw))
                continue
            last, _, offset, raw = heappushpop(heap, (at_ns, number, offset, raw))
            yield last, offset, raw
        while heap:
            at_ns, _, offset, raw = heappop(heap)
            yield at_ns, offset, raw

    def _read(self, part: Callable[[Raw], Any], offset: int, raw: Raw) -> Any:
        try:
            return part(raw)
        except (ValueError, msgspec.DecodeError) as error:
            raise PlanError(f"{self._records.file.where(offset)}: {error}") from error


def format_of(records: Records) -> Format:
    """Which trace this is, by its columns. Raises PlanError."""
    if not isinstance(records, Table):
        return MOONCAKE
    names = {name.lower(): i for i, name in enumerate(records.header)}
    for (at, prompt, reply), read_at in _TABLES:
        if at in names and prompt in names and reply in names:
            return _table(records, names[at], names[prompt], names[reply], read_at)
    raise PlanError(
        f"{records.file.path} is no trace that is known: it needs the columns TIMESTAMP,ContextTokens,GeneratedTokens"
        f" (Azure) or Timestamp,Request tokens,Response tokens (BurstGPT), got {records.header}"
    )


def _table(records: Table, at: int, prompt: int, reply: int, read_at: Callable[[str], int]) -> Format:
    width = len(records.header)

    def at_ns(cells: list[str]) -> int:
        if len(cells) != width:
            records.columns(cells)  # says what is wrong
        return read_at(cells[at])

    return Format(at_ns, lambda cells: Arrival(_tokens(cells[prompt]), _tokens(cells[reply])))


def _tokens(cell: str) -> int:
    number = float(cell)
    if not 0 <= number < 1 << 32:
        raise ValueError(f"not a number of tokens: {cell!r}")
    return max(int(number), 1)


def seconds_ns(cell: str) -> int:
    """`12.5` seconds as ns, without the rounding of a float."""
    whole, _, fraction = cell.strip().partition(".")
    if not whole.isdecimal() or (fraction and not fraction.isdecimal()):
        return round(float(cell) * SECOND)  # 1e3, .5: whatever else float() takes, or its ValueError
    return int(whole) * SECOND + int(fraction[:9].ljust(9, "0") or "0")


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def utc_ns(cell: str) -> int:
    """`2023-11-16 18:15:46.6805900`, with or without a zone, as ns since 1970; datetime keeps only 1000 ns of it."""
    text = cell.strip()
    moment, fraction, zone = text[:19], "", text[19:]
    if zone.startswith("."):
        digits = len(zone) - len(zone[1:].lstrip("0123456789"))
        fraction, zone = zone[1:digits], zone[digits:]
    at = datetime.fromisoformat(moment + zone)
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86400 + since.seconds) * SECOND + int(fraction[:9].ljust(9, "0"))


_TABLES: Final = (
    (("timestamp", "contexttokens", "generatedtokens"), utc_ns),
    (("timestamp", "request tokens", "response tokens"), seconds_ns),
)


class _MooncakeTime(msgspec.Struct):
    timestamp: int | float


class _MooncakeRow(msgspec.Struct):
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


_TIME: Final = msgspec.json.Decoder(_MooncakeTime)
_ROW: Final = msgspec.json.Decoder(_MooncakeRow)


def _mooncake_at_ns(raw: bytes | str) -> int:
    return round(_TIME.decode(raw).timestamp * 1_000_000)


def _mooncake_arrival(raw: bytes | str) -> Arrival:
    row = _ROW.decode(raw)
    if row.input_length < 0 or row.output_length < 0:
        raise ValueError("a length is < 0")
    return Arrival(max(row.input_length, 1), max(row.output_length, 1), row.hash_ids)


MOONCAKE: Final = Format(_mooncake_at_ns, _mooncake_arrival)
