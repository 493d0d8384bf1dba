"""One request: what was asked, its time marks, what the reply meant. Owned by one worker, never shared.

How it works. The worker makes an Exchange when the slot is due; every attempt begins with `begin_attempt`. Dial and
connection write the marks as they happen, and pass each read's events to `take`, or to `take_one` if the read brought
exactly one complete event, which nearly every read does. Both ask the dialect's reply what the event means (bits:
TOKEN, VISIBLE, END, FAILED) and derive the marks of the first event, token and output, and one gap word per further
token (engine/records/record.py). A read has one stamp, and it belongs to the read's last byte: gaps inside a read are
unknown and marked coalesced, the gap before it is kept, so that a stall that ends in a burst is seen. A first token that
shared a late read is marked too: its time is an upper bound. tests/test_exchange.py holds `take_one` equal to `take`.
An exchange does not know its connection: the pool does.
"""

from __future__ import annotations

from array import array
from time import monotonic_ns
from typing import Final

from ..dialects import END, FAILED, OK, TOKEN, VISIBLE, Reply
from ..records import record
from ..records.record import GAP_COALESCED, GAP_MAX, GAP_REASONING, GAP_USER_CLOCK, UNKNOWN, Outcome
from ..records.ticks import CELL_BITS, CELL_MIN, COALESCED, OTHER_EVENTS, SeriesTicks, unwatched
from ..workload import Session

OUTPUT: Final = TOKEN | VISIBLE
# A first token that shared its read came this long before the read at most when the read was on time: a worker that
# waits in epoll is woken by the first segment.
LATE_NS: Final = 1_000_000
OVER: Final = END | FAILED
FIRST: Final = 16  # beside the bits of engine.dialects: the first token of the reply was among the events
UNWATCHED: Final = unwatched()


class Exchange:
    """One request, from its slot in the schedule to its record. All times CLOCK_MONOTONIC ns, 0 where not reached."""

    __slots__ = (
        "asked_input_tokens",
        "asked_output_tokens",
        "attempts",
        "coalesced",
        "connect_start_ns",
        "deadline_ns",
        "dequeued_ns",
        "dns_done_ns",
        "empty_events",
        "end_ns",
        "error",
        "estimate_tokens",
        "events",
        "first_event_ns",
        "first_output_ns",
        "first_token_ns",
        "flags",
        "gaps",
        "gaps_saturated",
        "headers_ns",
        "http_status",
        "inflight_slot",
        "intended_ns",
        "itl_max_ns",
        "kept_headers",
        "last_send_ns",
        "last_token_ns",
        "live",
        "outcome",
        "phase",
        "provider_us",
        "read_event",
        "read_ns",
        "received_bytes",
        "reply",
        "request",
        "reserved",
        "rtt_us",
        "send_ns",
        "sent_bytes",
        "series_word",
        "session",
        "target",
        "tcp_done_ns",
        "tcp_retransmits",
        "tls_done_ns",
        "trailing",
        "trailing_at",
        "waited_ns",
        "wire",
    )

    def __init__(self, request: int, intended_ns: int, phase: int, target: int, series: int, wire: bytes) -> None:
        self.request = request
        self.intended_ns = intended_ns
        self.phase = phase
        self.target = target
        self.series_word = series << record.SERIES_SHIFT
        self.wire = wire
        self.live: SeriesTicks = UNWATCHED  # what the tick that runs shows of this series
        self.session: Session | None = None
        self.estimate_tokens = 0
        self.asked_input_tokens = self.asked_output_tokens = 0
        self.reserved = 0  # pico-USD of the budget
        self.inflight_slot = 0
        self.dequeued_ns = 0
        self.waited_ns = 0  # before the first send, for what is not this client's fault (records.record)
        self.send_ns = 0
        self.deadline_ns = 0
        self.first_token_ns = 0  # looked at before the first attempt, while a limit holds the request back
        self.attempts = 0
        self.flags = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.tcp_retransmits = record.RETRANSMITS_UNKNOWN  # of all attempts
        self.connect_start_ns = self.dns_done_ns = self.tcp_done_ns = self.tls_done_ns = 0

    def begin_attempt(self, reply: Reply) -> None:
        """Clears what the last attempt left, for the first one too; the first send time stays."""
        self.reply = reply
        self.read_event = reply.event
        self.attempts += 1
        self.outcome: Outcome = OK
        self.error = ""
        self.http_status = 0
        self.kept_headers: dict[str, str] = {}
        self.headers_ns = self.first_event_ns = self.first_token_ns = self.first_output_ns = 0
        self.last_token_ns = self.end_ns = self.last_send_ns = self.itl_max_ns = self.read_ns = 0
        self.events = self.coalesced = self.gaps_saturated = 0
        self.rtt_us = self.provider_us = UNKNOWN
        self.empty_events = 0
        self.trailing = 0  # events without a token since the gap number `trailing_at`
        self.trailing_at = 0
        self.gaps: array[int] = array("Q")

    def fail(self, outcome: Outcome, message: str, now_ns: int) -> None:
        """Ends the attempt with `outcome`, at `now_ns` unless its end is known already."""
        self.end_ns = self.end_ns or now_ns
        self.outcome = outcome
        self.error = message

    def take(self, events: list[tuple[bytes, bytes]], stamp_ns: int, kernel: bool, complete: bool) -> int:
        """Takes the events of one read; returns the bits of all of them together.

        The stamp is that of the read's last byte, so only the last event is exact, and only if the read ended with it
        (`complete`). The gap before the read is kept: an upper bound for its first event, and the only trace of a stall
        that ends in a burst. The gaps between events of one read are unknown, and marked coalesced.
        """
        if not self.first_event_ns:
            self.first_event_ns = stamp_ns
            self.read_ns = self.last_send_ns
        read_event = self.read_event
        every = 0
        last = len(events) - 1
        for i, (name, text) in enumerate(events):
            bits = read_event(text, name)
            every |= bits
            self.events += 1
            if bits & TOKEN:
                every |= self._token(bits, stamp_ns, kernel, complete and i == last)
            else:
                self.live.count(OTHER_EVENTS, stamp_ns)
                if self.first_token_ns:
                    self._empty()
            if bits & OVER:  # what follows is not part of the reply, whichever packet brings it
                break
        self.read_ns = stamp_ns
        return every

    def take_one(self, event: tuple[bytes, bytes], stamp_ns: int, kernel: bool) -> int:
        """`take` for a read that brought exactly one complete event. Less than half its cost (benches/bench_reactor.py)."""
        bits = self.read_event(event[1], event[0])
        if bits == OUTPUT and kernel and self.first_output_ns:
            gap_ns = stamp_ns - self.last_token_ns
            if gap_ns > self.itl_max_ns:
                self.itl_max_ns = gap_ns
            if CELL_MIN <= gap_ns <= GAP_MAX:
                self.events += 1
                self.last_token_ns = self.read_ns = stamp_ns
                self.gaps.append(self.series_word | gap_ns)
                live = self.live  # live.gap() in place: the call costs 0.2 us more (benches/bench_ring.py)
                row = live.row if live.begin_ns <= stamp_ns < live.end_ns else live.row_at(stamp_ns)
                shift = gap_ns.bit_length() - CELL_BITS - 1
                row[(shift << CELL_BITS) + (gap_ns >> shift)] += 1
                return bits
        elif not self.first_event_ns:
            self.first_event_ns = stamp_ns
            self.read_ns = self.last_send_ns
        if bits & TOKEN:
            bits |= self._token(bits, stamp_ns, kernel, True)
        else:
            self.live.count(OTHER_EVENTS, stamp_ns)
            if self.first_token_ns:
                self._empty()
        self.events += 1
        self.read_ns = stamp_ns
        return bits

    @property
    def token_events(self) -> int:
        """Events that carried a token: the first one and one for every gap."""
        return len(self.gaps) + (self.first_token_ns > 0)

    def _empty(self) -> None:
        """Counts an event without a token, for now as part of the ending: it is empty if another token follows.

        Tokens need not look at this: whether one has followed shows in the number of gaps.
        """
        self.empty_events = self._empty_so_far()
        if self.trailing_at != len(self.gaps):
            self.trailing_at, self.trailing = len(self.gaps), 0
        self.trailing += 1

    def _empty_so_far(self) -> int:
        return self.empty_events + (self.trailing if self.trailing_at != len(self.gaps) else 0)

    def _token(self, bits: int, stamp_ns: int, kernel: bool, exact: bool) -> int:
        """Takes a token in; returns FIRST if it is the reply's first one."""
        first = 0
        if self.first_token_ns:
            word = self.series_word
            gap_ns = stamp_ns - self.last_token_ns
            if not gap_ns:  # both came with this read
                gap_ns = stamp_ns - self.read_ns  # no more is known than that it came after the read before
                word |= GAP_COALESCED
                self.coalesced += 1
            elif gap_ns > self.itl_max_ns:
                self.itl_max_ns = gap_ns
            if gap_ns > GAP_MAX:
                gap_ns = GAP_MAX
                self.gaps_saturated += 1
            if not kernel:
                word |= GAP_USER_CLOCK
            if not bits & VISIBLE:
                word |= GAP_REASONING
            self.gaps.append(word | gap_ns)
            if word & GAP_COALESCED:
                self.live.count(COALESCED, stamp_ns)
            else:
                self.live.gap(gap_ns, stamp_ns)
        else:
            first = FIRST
            self.first_token_ns = stamp_ns
            self.live.first(stamp_ns - self.send_ns, stamp_ns)
            if not exact and monotonic_ns() - stamp_ns > LATE_NS:
                self.flags |= record.TTFT_COALESCED
        if bits & VISIBLE and not self.first_output_ns:
            self.first_output_ns = stamp_ns
        self.last_token_ns = stamp_ns
        return first

    def values(self, worker: int) -> tuple[int, ...]:
        """The record's values in the order of `record.FIELDS`; the ring fills `gaps_end` in."""
        reply = self.reply
        session = self.session
        return (
            self.request,
            self.intended_ns,
            self.dequeued_ns,
            self.connect_start_ns,
            self.dns_done_ns,
            self.tcp_done_ns,
            self.tls_done_ns,
            self.send_ns,
            self.last_send_ns,
            self.headers_ns,
            self.first_event_ns,
            self.first_token_ns,
            self.first_output_ns,
            self.last_token_ns,
            self.end_ns,
            self.itl_max_ns,
            0,
            self.waited_ns,
            1,
            self.sent_bytes if self.sent_bytes < UNKNOWN else UNKNOWN,
            self.received_bytes if self.received_bytes < UNKNOWN else UNKNOWN,
            reply.input_tokens,
            reply.cached_tokens,
            reply.cache_write_tokens,
            reply.output_tokens,
            reply.reasoning_tokens,
            reply.billed_input_tokens,
            reply.billed_output_tokens,
            self.events,
            len(self.gaps) + (self.first_token_ns > 0),
            self.coalesced,
            self._empty_so_far(),
            self.asked_input_tokens,
            self.asked_output_tokens,
            session.id & UNKNOWN if session else 0,
            self.inflight_slot,
            self.flags | reply.flags,
            self.rtt_us,
            self.provider_us if reply.provider_us == UNKNOWN else reply.provider_us,
            self.target,
            self.phase,
            worker,
            self.attempts,
            self.http_status,
            session.turn if session else 0,
            self.tcp_retransmits,
            self.outcome,
            0,
        )
