"""What the events of a reply mean in time: first token, first output, gaps, and how sure each of them is (METRICS)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE, Reply
from llm_latency_lens.engine.records import record
from llm_latency_lens.engine.records.record import (
    FIELDS,
    GAP_COALESCED,
    GAP_MAX,
    GAP_REASONING,
    GAP_USER_CLOCK,
    SERIES_SHIFT,
    UNKNOWN,
    Outcome,
)
from llm_latency_lens.engine.records.ticks import COALESCED, GAP_CELLS, OTHER_EVENTS, unwatched
from llm_latency_lens.engine.wire.exchange import FIRST, Exchange

SEND = 1_000_000
MEANINGS = {
    b"text": TOKEN | VISIBLE,
    b"think": TOKEN,
    b"role": 0,
    b"last": TOKEN | VISIBLE | END,
    b"end": END,
    b"error": FAILED,
    b"bad": TOKEN | VISIBLE | FAILED,
}
QUALITY = GAP_COALESCED | GAP_USER_CLOCK | GAP_REASONING


class Spoken(Reply):
    """A reply whose events are words that say what they mean."""

    __slots__ = ()

    def event(self, text: bytes, name: bytes = b"") -> int:
        return MEANINGS[text]

    def body(self, text: bytes) -> int:
        return 0


class Read(NamedTuple):
    """One read: when, what events it completed, whether it ended with the last of them, whose clock."""

    at: int
    words: str
    whole: bool = True
    kernel: bool = True


def after(reads: Iterable[Read], *, series: int = 5) -> Exchange:
    exchange = Exchange(0, 0, 0, 0, series, b"")
    exchange.begin_attempt(Spoken())
    exchange.last_send_ns = SEND
    for read in reads:
        events = [(b"", word.encode()) for word in read.words.split()]
        exchange.take(events, SEND + read.at, read.kernel, read.whole)
    return exchange


def gaps(exchange: Exchange) -> list[tuple[int, int]]:
    """(gap in ns, its quality bits) of every gap; all are of the one series."""
    words = list(exchange.gaps)
    assert all(word >> SERIES_SHIFT & (record.SERIES_MAX - 1) == 5 for word in words)
    return [(word & GAP_MAX, word & QUALITY) for word in words]


FIRSTS: list[tuple[str, list[Read], tuple[int, int, int]]] = [
    ("a token is the first of all", [Read(10, "text")], (10, 10, 10)),
    ("a role is no token", [Read(10, "role"), Read(20, "text")], (10, 20, 20)),
    ("usage alone is no token", [Read(10, "role"), Read(20, "end")], (10, 0, 0)),
    ("reasoning is a token and no output", [Read(10, "think"), Read(20, "think"), Read(30, "text")], (10, 10, 30)),
    ("role and token in one read", [Read(10, "role text")], (10, 10, 10)),
    ("only reasoning", [Read(10, "think"), Read(20, "end")], (10, 10, 0)),
    ("an error first", [Read(10, "error")], (10, 0, 0)),
    ("the first is the last", [Read(10, "last")], (10, 10, 10)),
]


@pytest.mark.parametrize(("why", "reads", "marks"), FIRSTS, ids=[row[0] for row in FIRSTS])
def test_the_first_marks_are_those_of_metrics(why: str, reads: list[Read], marks: tuple[int, int, int]) -> None:
    """TTFT is defined by the first token, not by the first byte or an empty role event."""
    exchange = after(reads)
    found = (exchange.first_event_ns, exchange.first_token_ns, exchange.first_output_ns)
    assert found == tuple(SEND + mark if mark else 0 for mark in marks)


GAPS: list[tuple[str, list[Read], list[tuple[int, int]]]] = [
    ("one token has none", [Read(10, "text")], []),
    ("between tokens", [Read(10, "text"), Read(15, "text"), Read(35, "text")], [(5, 0), (20, 0)]),
    ("what is no token does not end one", [Read(10, "text"), Read(15, "role"), Read(35, "text")], [(25, 0)]),
    ("to a token that is the end too", [Read(10, "text"), Read(15, "last")], [(5, 0)]),
    (
        "reasoning is marked by its second end",
        [Read(10, "think"), Read(15, "think"), Read(20, "text")],
        [(5, GAP_REASONING), (5, 0)],
    ),
    ("back to reasoning", [Read(10, "text"), Read(15, "think")], [(5, GAP_REASONING)]),
    ("user clock", [Read(10, "text"), Read(15, "text", kernel=False)], [(5, GAP_USER_CLOCK)]),
    (
        "two in a read: the first to its own time at most, the second since the read before",
        [Read(10, "text"), Read(30, "text text")],
        [(20, 0), (20, GAP_COALESCED)],
    ),
    (
        "the gap after a shared read is exact again: the last event ended with the read",
        [Read(10, "text"), Read(30, "text text"), Read(40, "text")],
        [(20, 0), (20, GAP_COALESCED), (10, 0)],
    ),
    (
        "a read that goes on inside the next event: its gap is an upper bound like any other",
        [Read(10, "text"), Read(30, "text", whole=False), Read(40, "text"), Read(50, "text")],
        [(20, 0), (10, 0), (10, 0)],
    ),
    (
        "two in the very first read: since the request was sent",
        [Read(10, "text text")],
        [(10, GAP_COALESCED)],
    ),
    (
        "two in the first read that has tokens: since the read before",
        [Read(10, "role"), Read(40, "text text")],
        [(30, GAP_COALESCED)],
    ),
    ("a token behind which comes the end", [Read(10, "text"), Read(20, "text end")], [(10, 0)]),
    ("the very longest that fits", [Read(0, "text"), Read(GAP_MAX, "text")], [(GAP_MAX, 0)]),
    ("a longer one saturates", [Read(0, "text"), Read(GAP_MAX + 1, "text")], [(GAP_MAX, 0)]),
    ("nothing after a failure", [Read(10, "text"), Read(20, "text error text text")], [(10, 0)]),
]


@pytest.mark.parametrize(("why", "reads", "expected"), GAPS, ids=[row[0] for row in GAPS])
def test_gaps_are_those_between_tokens_and_say_how_sure_they_are(
    why: str, reads: list[Read], expected: list[tuple[int, int]]
) -> None:
    """Inter-token latency is what the tool is for; each row is a rule of its definition."""
    assert gaps(after(reads)) == expected


def test_coalesced_and_saturated_gaps_are_counted() -> None:
    """What is only an upper bound, or cut, has to be visible in the report."""
    exchange = after([Read(10, "text"), Read(20, "text text text"), Read(20 + 2 * GAP_MAX, "text")])
    assert (exchange.coalesced, exchange.gaps_saturated, len(exchange.gaps)) == (2, 1, 4)
    assert exchange.token_events == 5


def test_the_longest_gap_is_not_cut_where_the_gap_word_is() -> None:
    """A stall of hours is the one that matters most."""
    exchange = after([Read(10, "text"), Read(10 + GAP_MAX * 2, "text"), Read(10 + GAP_MAX * 2 + 7, "text")])
    assert exchange.itl_max_ns == GAP_MAX * 2


def test_the_longest_gap_is_never_one_that_was_counted_twice() -> None:
    """A gap between a role event and the first token is no gap between tokens."""
    exchange = after([Read(10, "role"), Read(500, "text text"), Read(510, "text")])
    assert exchange.itl_max_ns == 10  # the 490 ns before the first token are no gap


def test_a_stall_that_ends_in_a_burst_is_a_gap() -> None:
    """The tail of the inter-token latency is made of these: leaving them out hid a stall of 2 s behind a max of 60 ms."""
    found = gaps(after([Read(10, "text"), Read(20, "text"), Read(2020, "text text text text"), Read(2030, "text")]))
    assert max(gap for gap, bits in found if not bits & GAP_COALESCED) == 2000
    assert [gap for gap, bits in found if not bits & GAP_COALESCED] == [10, 2000, 10]


def test_a_first_token_that_shares_its_read_is_an_upper_bound() -> None:
    """Its real time lies before the stamp of the read."""
    assert after([Read(10, "text text")]).flags & record.TTFT_COALESCED
    assert after([Read(10, "text", whole=False)]).flags & record.TTFT_COALESCED
    assert not after([Read(10, "role text")]).flags & record.TTFT_COALESCED
    assert not after([Read(10, "text"), Read(20, "text text")]).flags & record.TTFT_COALESCED


def test_every_event_is_counted_tokens_apart() -> None:
    """Events per second and tokens are reported apart."""
    exchange = after([Read(10, "role"), Read(20, "text role text"), Read(30, "end")])
    assert (exchange.events, exchange.token_events) == (5, 2)


EMPTY: list[tuple[str, list[Read], int]] = [
    ("a role before the first token", [Read(10, "role"), Read(20, "text")], 0),
    ("text held back between two tokens", [Read(10, "text"), Read(20, "role"), Read(30, "text")], 1),
    ("several, in reads of their own and shared", [Read(10, "text role"), Read(20, "role"), Read(30, "role text")], 3),
    ("usage and the end behind the last token", [Read(10, "text"), Read(20, "text"), Read(30, "role end")], 0),
    ("between tokens and behind them", [Read(10, "text role text"), Read(30, "role"), Read(40, "end")], 1),
]


@pytest.mark.parametrize(("why", "reads", "empty"), EMPTY, ids=[row[0] for row in EMPTY])
def test_events_without_a_token_between_tokens_are_counted(why: str, reads: list[Read], empty: int) -> None:
    """A server that holds bytes back sends empty events: each hides a token from ITL, 2.5 % of them on a real vLLM."""
    values = dict(zip([name for name, _ in FIELDS], after(reads).values(worker=0), strict=True))
    assert values["empty_events"] == empty


def test_take_gives_the_bits_of_all_its_events() -> None:
    """The connection ends the request by these bits: a lost END would hang it."""
    exchange = after([])
    assert exchange.take([(b"", b"role"), (b"", b"think"), (b"", b"end")], SEND + 5, True, True) == TOKEN | END | FIRST
    assert exchange.take([(b"", b"role")], SEND + 6, True, True) == 0


def test_a_second_attempt_begins_anew_and_keeps_the_first_send() -> None:
    """A retry must not inherit marks, and e2e latency counts from the first send."""
    exchange = after([Read(10, "text text"), Read(20, "text")])
    exchange.send_ns = SEND
    exchange.outcome, exchange.error, exchange.http_status = Outcome.HTTP_SERVER, "no", 500
    exchange.begin_attempt(Spoken())
    fresh = Exchange(0, 0, 0, 0, 5, b"")
    fresh.begin_attempt(Spoken())
    for name in Exchange.__slots__:
        if name not in ("send_ns", "attempts", "flags", "reply", "read_event"):
            assert getattr(exchange, name) == getattr(fresh, name), name
    assert (exchange.attempts, exchange.send_ns) == (2, SEND)


words = st.sampled_from(sorted(word.decode() for word in MEANINGS))
steps = st.sampled_from([0, 1, 7, 1000, 1024, 20_000_001, GAP_MAX - 1, GAP_MAX, GAP_MAX + 1])


@given(st.lists(st.tuples(words, steps, st.booleans(), st.booleans()), max_size=12))
def test_one_event_taken_alone_means_the_same_as_taken_with_a_list(reads: list[tuple[str, int, bool, bool]]) -> None:
    """The hot path's short way is an optimization and nothing else, and the tick has each event once."""
    one, many = after([]), after([])
    one.live, many.live = unwatched(), unwatched()
    at = SEND
    for word, step, kernel, alone in reads:
        at += step
        event = (b"", word.encode())
        bits = many.take([event], at, kernel, True)
        assert (one.take_one(event, at, kernel) if alone else one.take([event], at, kernel, True)) == bits
    for name in Exchange.__slots__:
        if name not in ("reply", "read_event", "live"):
            assert getattr(one, name) == getattr(many, name), name
    counts = one.live.row_at(at).tolist()
    assert counts == many.live.row_at(at).tolist()
    tokens = counts[COALESCED] + sum(counts[GAP_CELLS:])
    assert (tokens, tokens + counts[OTHER_EVENTS]) == (one.token_events, one.events)


batches = st.lists(st.tuples(st.lists(words, min_size=1, max_size=4).map(" ".join), steps, st.booleans()), max_size=8)


@given(batches)
def test_marks_and_gaps_add_up_whatever_comes(reads: list[tuple[str, int, bool]]) -> None:
    """Invariants that no sequence of events may break."""
    times = list(itertools.accumulate(step for _, step, _ in reads))
    exchange = after(Read(at + 1, text, whole) for at, (text, _, whole) in zip(times, reads, strict=True))
    found = gaps(exchange)
    assert exchange.coalesced == sum(bool(bits & GAP_COALESCED) for _, bits in found)
    assert exchange.first_event_ns <= exchange.first_token_ns or not exchange.first_token_ns
    assert exchange.first_token_ns <= exchange.last_token_ns
    assert exchange.token_events <= exchange.events
    if all(bits & GAP_COALESCED == 0 for _, bits in found) and not exchange.gaps_saturated:
        assert sum(gap for gap, _ in found) == exchange.last_token_ns - exchange.first_token_ns


def test_a_record_has_every_value_in_its_field() -> None:
    """Values are written by position: one that moves would corrupt every field behind it."""
    exchange = after([Read(10, "role"), Read(20, "text"), Read(30, "think")])
    exchange.received_bytes = UNKNOWN + 1
    exchange.target, exchange.phase = 3, 2
    values = dict(zip([name for name, _ in FIELDS], exchange.values(worker=7), strict=True))
    assert (values["first_event_ns"], values["first_token_ns"], values["last_token_ns"]) == (
        SEND + 10,
        SEND + 20,
        SEND + 30,
    )
    assert (values["events"], values["token_events"], values["coalesced"]) == (3, 2, 0)
    assert (values["target"], values["phase"], values["worker"], values["attempts"]) == (3, 2, 7, 1)
    assert values["received_bytes"] == UNKNOWN  # more does not fit
    assert values["output_tokens"] == UNKNOWN
    assert len(record.RECORD.pack(*values.values())) == record.PAYLOAD_BYTES
