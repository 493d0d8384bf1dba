"""The numbers of a span of time: per (phase, target) the distributions, tallies and extremes. All of it adds up.

A `Slab` is a tick's, or the complete run's: `total.add(tick)` is the only way numbers reach the totals, so intervals and
totals cannot disagree. Only `ok` requests whose run saw no clock step enter the latency distributions; both latenesses are
of all that were sent; failures have their own e2e by outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..engine.metrics import METRICS
from ..engine.records.detail import Detail
from ..engine.records.record import (
    CLOCK_STEPPED,
    FAILURES,
    GAP_COALESCED,
    GAP_MAX,
    LOCAL_TOKENS,
    OUTCOMES,
    RETRANSMITS_UNKNOWN,
    REUSED,
    TTFT_COALESCED,
    UNKNOWN,
    USER_CLOCK,
    Outcome,
    Unsent,
)
from .goodput import Key, Line, meets
from .histogram import Histogram
from .measures import Column, Flags, Records, Values, conduct, in_bursts, output_tokens
from .rollup import UNRECORDED
from .snapshot import Moments

LIVE: Final = ("ttft_ms", "itl_ms")  # shown in the tick in which their values happened
ENDED: Final = ".ended"  # marks the name of such a metric of requests by their end
NOBODY: Final = -1  # target of a slot that ended unsent before it had one, in a plan of several targets

_LATENESS: Final = ("lateness_ms", "client_lateness_ms")
_LATENCIES: Final = tuple(name for name in METRICS if name not in ("itl_ms", *_LATENESS))
_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


class Tally(IntEnum):
    """What is counted of a series, behind the outcomes (0..OUTCOMES-1: requests by outcome, UNSENT in slots)."""

    UNSENT_REASON = OUTCOMES  # one per member of Unsent; NONE's position holds the unrecorded ones
    ATTEMPTS = OUTCOMES + len(Unsent)
    INPUT = ATTEMPTS + 1
    OUTPUT = ATTEMPTS + 2
    CACHED = ATTEMPTS + 3
    REASONING = ATTEMPTS + 4
    INPUT_KNOWN = ATTEMPTS + 5  # ok requests whose count is known, in the order of the sums
    OUTPUT_KNOWN = ATTEMPTS + 6
    CACHED_KNOWN = ATTEMPTS + 7
    REASONING_KNOWN = ATTEMPTS + 8
    BY_PROVIDER = ATTEMPTS + 9  # ok requests by the source of their output tokens
    BY_TOKENIZER = ATTEMPTS + 10
    BY_EVENTS = ATTEMPTS + 11
    EVENTS = ATTEMPTS + 12
    GOOD = ATTEMPTS + 13
    OPENED = ATTEMPTS + 14  # ok requests on a connection of their own
    REUSED = ATTEMPTS + 15
    GAPS = ATTEMPTS + 16  # all that arrived, coalesced ones included
    GAPS_COALESCED = ATTEMPTS + 17
    STREAMS = ATTEMPTS + 18  # ok requests with a first token
    STREAMS_COALESCED = ATTEMPTS + 19
    KERNEL_STAMPED = ATTEMPTS + 20  # requests with an arrival mark, by the clock that stamped it
    USER_STAMPED = ATTEMPTS + 21
    STEPPED = ATTEMPTS + 22  # kept out of the latencies because the wall clock was stepped
    DROPPED = ATTEMPTS + 23  # records a full ring could not take; they stand in the outcomes
    PRICED = ATTEMPTS + 24
    UNPRICED = ATTEMPTS + 25
    PICO_USD = ATTEMPTS + 26
    CLAMPED = ATTEMPTS + 27  # values above the histogram's range, over all metrics
    BURSTS = ATTEMPTS + 28  # ok replies without a pace: most of their tokens shared reads (measures.in_bursts)
    EMPTY_EVENTS = ATTEMPTS + 29
    ASKED_INPUT = ATTEMPTS + 30  # tokens asked for in ok requests whose count is known, and that count
    MEASURED_INPUT = ATTEMPTS + 31
    ASKED_OUTPUT = ATTEMPTS + 32
    MEASURED_OUTPUT = ATTEMPTS + 33
    TOKEN_EVENTS = ATTEMPTS + 34  # of ok requests
    FINISH_STOP = ATTEMPTS + 35  # ok replies by what measures.conduct says of them
    FINISH_LENGTH = ATTEMPTS + 36
    FINISH_OTHER = ATTEMPTS + 37
    LENGTH_ASKED = ATTEMPTS + 38
    SHORTER = ATTEMPTS + 39
    LONGER = ATTEMPTS + 40
    CUT_SHORT = ATTEMPTS + 41
    USAGE_UNDER_EVENTS = ATTEMPTS + 42
    REPLY_COMPARED = ATTEMPTS + 43
    IDENTICAL_REPLY = ATTEMPTS + 44
    REPEATED_PROMPT = ATTEMPTS + 45
    LIVE_SENT = ATTEMPTS + 46  # what happened in the tick, whenever its requests end (collectors.live)
    LIVE_EVENTS = ATTEMPTS + 47
    LIVE_TOKEN_EVENTS = ATTEMPTS + 48
    LIVE_COALESCED = ATTEMPTS + 49
    LIVE_TOKENS = ATTEMPTS + 50
    IN_FLIGHT_SUM = ATTEMPTS + 51  # requests in flight at the ends of ticks, added up
    IN_FLIGHT_TICKS = ATTEMPTS + 52  # at how many; counted in the first target of a phase
    RETRANSMITS = ATTEMPTS + 53  # segments sent again, of sent requests of which the kernel said, and their number
    RETRANSMITS_KNOWN = ATTEMPTS + 54
    FIRST_END = ATTEMPTS + 55  # extremes, CLOCK_MONOTONIC ns; 0 where there is none
    LAST_END = ATTEMPTS + 56


TALLIES: Final = Tally.LAST_END + 1
_SUMMED: Final = Tally.FIRST_END
_SUMS: Final = ((Tally.ATTEMPTS, "attempts"), (Tally.EVENTS, "events"), (Tally.EMPTY_EVENTS, "empty_events"))
_LINE_NAMES: Final = ("line_met", "line_sent")
# The names of the sums in Interval.counts, by their position in `Series.tally`.
_NAMES: Final = (
    *(outcome.name.lower() for outcome in Outcome),
    *(f"unsent_{reason.name.lower() if reason else UNRECORDED}" for reason in Unsent),
    *(Tally(position).name.lower() for position in range(Tally.ATTEMPTS, _SUMMED)),
)


class Series:
    """One (phase, target). `tally` holds the counts at the positions of `Tally` and of the outcomes; `lines` of each
    `request` objective that judges it, by its number, the requests that met it and those it was asked of.

    `metrics` are of requests by their end. `live`, in a closed tick only, are those of LIVE by the moment of each value,
    requests that still run included; they are never added to the totals.
    """

    __slots__ = ("failures", "lines", "live", "metrics", "tally")

    def __init__(self) -> None:
        self.tally: Values = np.zeros(TALLIES, np.int64)
        self.lines: dict[int, tuple[int, int]] = {}
        self.metrics: dict[str, Histogram] = {}
        self.failures: dict[Outcome, Histogram] = {}
        self.live: dict[str, Histogram] | None = None

    def add(self, other: Series) -> None:
        self.add_counts(other)
        for name, histogram in other.metrics.items():
            self.metrics.setdefault(name, Histogram()).add(histogram)
        for outcome, histogram in other.failures.items():
            self.failures.setdefault(outcome, Histogram()).add(histogram)
        if other.live is not None:
            self.live = self.live or {}
            for name, histogram in other.live.items():
                self.live.setdefault(name, Histogram()).add(histogram)

    def add_counts(self, other: Series) -> None:
        """The tallies only: for those who do not need the distributions."""
        self.tally[:_SUMMED] += other.tally[:_SUMMED]
        for line, counted in other.lines.items():
            self._add_line(line, *counted)
        self._extend(int(other.tally[Tally.FIRST_END]), int(other.tally[Tally.LAST_END]))

    def _add_line(self, line: int, met: int, sent: int) -> None:
        before = self.lines.get(line, (0, 0))
        self.lines[line] = (before[0] + met, before[1] + sent)

    def _extend(self, first_end: int, last_end: int) -> None:
        known = int(self.tally[Tally.FIRST_END])
        if first_end and (not known or first_end < known):
            self.tally[Tally.FIRST_END] = first_end
        self.tally[Tally.LAST_END] = max(int(self.tally[Tally.LAST_END]), last_end)

    @property
    def sent(self) -> int:
        return int(self.tally[Outcome.OK : OUTCOMES].sum())

    @property
    def unsent(self) -> int:
        return int(self.tally[Outcome.UNSENT])

    @property
    def failed(self) -> int:
        return int(sum(self.tally[outcome] for outcome in FAILURES))

    def counts(self) -> dict[str, int]:
        """What was counted, by name, without zeros."""
        counted = {_NAMES[i]: int(self.tally[i]) for i in np.flatnonzero(self.tally[:_SUMMED]).tolist()}
        for line, pair in self.lines.items():
            counted |= {f"{name}_{line}": n for name, n in zip(_LINE_NAMES, pair, strict=True) if n}
        return counted

    def shown(self) -> dict[str, Histogram]:
        """The distributions by metric; in a tick those of LIVE are the live ones."""
        if self.live is None:
            return self.metrics
        return {name: each for name, each in self.metrics.items() if name not in LIVE} | self.live

    def named(self) -> dict[str, Histogram]:
        """All distributions by the names they have in files: those shown, in a tick those of requests that ended as
        `<metric>.ended`, which add up to the run's, and those of failures as `e2e_ms.<outcome>`."""
        shown = self.shown()
        named = {name: shown[name] for name in METRICS if name in shown}
        if self.live is not None:
            named |= {f"{name}{ENDED}": self.metrics[name] for name in LIVE if name in self.metrics}
        return named | {f"e2e_ms.{outcome.name.lower()}": each for outcome, each in sorted(self.failures.items())}

    def moments(self) -> dict[str, Moments]:
        """Of each distribution of `named`."""
        return {name: found for name, each in self.named().items() if (found := each.moments()) is not None}

    @classmethod
    def restored(
        cls, counts: Mapping[str, int], metrics: dict[str, Histogram], failures: dict[Outcome, Histogram]
    ) -> Series:
        """The series that `counts` came from. Its extremes of time are unknown."""
        made = cls()
        made.tally[:_SUMMED] = [counts.get(name, 0) for name in _NAMES]
        line = 0
        while f"{_LINE_NAMES[1]}_{line}" in counts:
            made.lines[line] = (counts.get(f"{_LINE_NAMES[0]}_{line}", 0), counts[f"{_LINE_NAMES[1]}_{line}"])
            line += 1
        made.metrics, made.failures = metrics, failures
        return made

    def records(self, records: Records, columns: Mapping[str, Column], lines: Mapping[int, Line] | None = None) -> None:
        """Takes a batch of this series' records in, with their columns; `lines` judge it, None if the plan has none."""
        tally = self.tally
        outcome = records["outcome"]
        tally[1:OUTCOMES] += np.bincount(outcome, minlength=OUTCOMES)[1:OUTCOMES]
        self._unsent(records[outcome == Outcome.UNSENT])
        sent = outcome != Outcome.UNSENT
        if not sent.any():
            return
        ok = outcome == Outcome.OK
        stepped = (records["flags"] & CLOCK_STEPPED) != 0
        believed = ok & ~stepped
        for name in _LATENCIES:
            if name in columns:
                has, value = columns[name]
                self._record(name, value[has & (ok if name == "cost_usd" else believed)])
        for name in _LATENESS:
            has, value = columns[name]
            self._record(name, value[has & sent])
        self._failures(outcome, ~stepped, columns["e2e_ms"])
        self._counts(records, sent, ok, stepped)
        self._tokens(records[ok])
        self._spans(records[sent])
        if lines is not None:
            good = believed.copy()
            for line, objective in lines.items():
                met = believed & meets(records, columns, objective.conditions)
                self._add_line(line, int(np.count_nonzero(met)), int(np.count_nonzero(sent)))
                good &= met
            tally[Tally.GOOD] += int(np.count_nonzero(good))

    def _record(self, name: str, values: Values) -> None:
        if len(values):
            histogram = self.metrics.setdefault(name, Histogram())
            before = histogram.clamped_high
            histogram.record(values)
            self.tally[Tally.CLAMPED] += histogram.clamped_high - before

    def _unsent(self, records: Records) -> None:
        if len(records):
            slots = np.maximum(records["slots"].astype(np.int64), 1)
            reasons = np.bincount(records["unsent"], weights=slots, minlength=len(Unsent)).astype(np.int64)
            self.tally[Outcome.UNSENT] += int(slots.sum())
            self.tally[Tally.UNSENT_REASON : Tally.ATTEMPTS] += reasons[: len(Unsent)]

    def _failures(self, outcome: npt.NDArray[Any], believed: npt.NDArray[np.bool_], e2e: Column) -> None:
        has, value = e2e
        for failure in np.unique(outcome):
            if failure in FAILURES and (mine := (outcome == failure) & has & believed).any():
                self.failures.setdefault(Outcome(failure), Histogram()).record(value[mine])

    def _counts(self, records: Records, sent: Flags, ok: Flags, stepped: Flags) -> None:
        flags, tally = records["flags"], self.tally
        arrived = sent & (records["headers_ns"] > 0)
        streams = ok & (records["first_token_ns"] > 0)
        known = sent & (records["tcp_retransmits"] != RETRANSMITS_UNKNOWN)
        for position, chosen in (
            (Tally.STEPPED, sent & stepped),
            (Tally.USER_STAMPED, arrived & ((flags & USER_CLOCK) != 0)),
            (Tally.KERNEL_STAMPED, arrived & ((flags & USER_CLOCK) == 0)),
            (Tally.REUSED, ok & ((flags & REUSED) != 0)),
            (Tally.OPENED, ok & ((flags & REUSED) == 0)),
            (Tally.STREAMS, streams),
            (Tally.STREAMS_COALESCED, streams & ((flags & TTFT_COALESCED) != 0)),
            (Tally.RETRANSMITS_KNOWN, known),
            (Tally.BURSTS, ok & in_bursts(records)),
        ):
            tally[position] += int(np.count_nonzero(chosen))
        tally[Tally.RETRANSMITS] += int(records["tcp_retransmits"][known].sum(dtype=np.int64))
        for position, name in _SUMS:
            tally[position] += int(records[name][sent].sum(dtype=np.int64))

    def _tokens(self, ok: Records) -> None:
        tally = self.tally
        for offset, name in enumerate(_TOKENS):
            known = ok[name] != UNKNOWN
            counts = output_tokens(ok) if name == "output_tokens" else np.where(known, ok[name], 0).astype(np.int64)
            tally[Tally.INPUT + offset] += int(counts.sum())
            tally[Tally.INPUT_KNOWN + offset] += int(np.count_nonzero(known))
        for asked, measured, name in (
            (Tally.ASKED_INPUT, Tally.MEASURED_INPUT, "input_tokens"),
            (Tally.ASKED_OUTPUT, Tally.MEASURED_OUTPUT, "output_tokens"),
        ):
            both = (ok[f"asked_{name}"] > 0) & (ok[name] != UNKNOWN)
            tally[asked] += int(ok[f"asked_{name}"][both].sum(dtype=np.int64))
            tally[measured] += int(ok[name][both].sum(dtype=np.int64))
        for name, chosen in conduct(ok).items():
            tally[Tally[name]] += int(np.count_nonzero(chosen))
        tally[Tally.TOKEN_EVENTS] += int(ok["token_events"].sum(dtype=np.int64))
        said = ok["output_tokens"] != UNKNOWN
        local = said & ((ok["flags"] & LOCAL_TOKENS) != 0)
        tally[Tally.BY_TOKENIZER] += int(np.count_nonzero(local))
        tally[Tally.BY_PROVIDER] += int(np.count_nonzero(said & ~local))
        tally[Tally.BY_EVENTS] += int(np.count_nonzero(~said & (ok["token_events"] > 0)))

    def _spans(self, sent: Records) -> None:
        ends = sent["end_ns"][sent["end_ns"] > 0]
        if len(ends):
            self._extend(int(ends.min()), int(ends.max()))

    def costs(self, ok: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], pico_usd: Values) -> None:
        """Takes a batch's costs in: all replies with known usage are priced; an ok one without is unpriced."""
        self.tally[Tally.PRICED] += int(np.count_nonzero(known))
        self.tally[Tally.UNPRICED] += int(np.count_nonzero(ok & ~known))
        self.tally[Tally.PICO_USD] += int(pico_usd[known].sum())

    def gaps(self, words: npt.NDArray[np.uint64]) -> None:
        """Takes gap words of this series in: coalesced ones are only counted."""
        coalesced = (words & np.uint64(GAP_COALESCED)) != 0
        exact = (words[~coalesced] & np.uint64(GAP_MAX)).astype(np.int64)
        self._record("itl_ms", exact)
        self.tally[Tally.GAPS] += len(words)
        self.tally[Tally.GAPS_COALESCED] += int(np.count_nonzero(coalesced))

    def drops(self, by_outcome: Values) -> None:
        """Takes records in that a full ring dropped: only their outcomes are known."""
        self.tally[:OUTCOMES] += by_outcome
        self.tally[Tally.UNSENT_REASON] += int(by_outcome[Outcome.UNSENT])
        self.tally[Tally.DROPPED] += int(by_outcome.sum())

    def packed(self) -> list[Any]:
        metrics = {name: histogram.packed() for name, histogram in self.metrics.items()}
        failures = {int(key): each.packed() for key, each in self.failures.items()}
        return [self.tally.tobytes(), metrics, failures, self.lines]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> Series:
        made = cls()
        made.tally = np.frombuffer(packed[0], np.int64).copy()
        made.metrics = {name: Histogram.unpacked(each) for name, each in packed[1].items()}
        made.failures = {Outcome(key): Histogram.unpacked(each) for key, each in packed[2].items()}
        made.lines = {line: (met, sent) for line, (met, sent) in packed[3].items()}
        return made


class Slab:
    """All series of a span of time, by (phase, target)."""

    __slots__ = ("series",)

    def __init__(self) -> None:
        self.series: dict[Key, Series] = {}

    def __bool__(self) -> bool:
        return bool(self.series)

    def at(self, key: Key) -> Series:
        return self.series.setdefault(key, Series())

    def add(self, other: Slab) -> None:
        for key, series in other.series.items():
            self.at(key).add(series)

    def only(self, chosen: Callable[[Key], bool]) -> Series:
        """The sum of the series whose key is chosen; to be read only, as it may be one of them."""
        found = [series for key, series in self.series.items() if chosen(key)]
        if len(found) == 1:
            return found[0]
        total = Series()
        for series in found:
            total.add(series)
        return total

    def sums(self) -> Series:
        """The sum of all series without their distributions."""
        total = Series()
        for series in self.series.values():
            total.add_counts(series)
        return total

    def packed(self) -> list[Any]:
        return [[list(key), series.packed()] for key, series in self.series.items()]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> Slab:
        made = cls()
        made.series = {(key[0], key[1]): Series.unpacked(each) for key, each in packed}
        return made


class Batch(NamedTuple):
    """Records of one worker with their columns, and what is known beyond the record of some, by (phase, request)."""

    records: Records
    columns: dict[str, Column]
    pico_usd: Column | None
    details: dict[tuple[int, int], Detail]
    worker: int
    gaps: npt.NDArray[np.uint64] | None = None  # of the drain that brought the records
    owners: npt.NDArray[np.int64] | None = None  # owners[i] is the index of the record that gaps[i] is of

    def take(self, chosen: Any) -> Batch:
        """The chosen records of the batch, without gaps; the details stay complete."""
        columns = {name: (has[chosen], value[chosen]) for name, (has, value) in self.columns.items()}
        money = None if self.pico_usd is None else (self.pico_usd[0][chosen], self.pico_usd[1][chosen])
        return Batch(self.records[chosen], columns, money, self.details, self.worker)
