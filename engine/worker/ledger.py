"""What a worker writes of its requests: the in-flight table, records, details, and its totals.

The order of the writes is what makes a SIGKILL at any moment harmless. The entry in the in-flight table comes before
the NEXT_SLOT counter, so that no slot is lost: a successor goes on behind NEXT_SLOT, and everything before it is a
record or an entry. A detail comes before the record it belongs to, because the record commits both; the entry is
cleared last, because a request that is in both was recorded, and one that is in neither would be missing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from time import monotonic_ns
from typing import Final

import msgspec

from ..dialects import OK
from ..dialects.outcomes import finish_flag, masked_text
from ..load.phase_run import PhaseRun
from ..plan.plan import Plan
from ..records.detail import Detail
from ..records.layout import DETAIL_MAX, PHASE_SHIFT, TURN_SHIFT, Counter
from ..records.record import NO_TARGET, SERIES_SHIFT, STALE_RESENT, UNKNOWN, Unsent, unsent_values
from ..records.ticks import SENT
from ..records.writer import SegmentWriter
from ..wire.exchange import Exchange

TEXT_PIECE_CHARS: Final = 108  # of at most 4 bytes each: they fit a detail
MESSAGE_CHARS: Final = 120  # what is kept of a message whose detail would be too long
REQUEST_ID_CHARS: Final = 80
FINISH_CHARS: Final = 40

_packed = msgspec.msgpack.Encoder().encode
_NEXT_SLOT: Final = int(Counter.NEXT_SLOT)
_GAPS_SATURATED: Final = int(Counter.GAPS_SATURATED)


class Ledger:
    """One writer: the worker. `active` has every exchange between its entry and its record, with its phase."""

    def __init__(
        self,
        segment: SegmentWriter,
        plan: Plan,
        secrets: Sequence[tuple[str, ...]],
        *,
        worker: int,
        workers: int,
    ) -> None:
        self.segment = segment
        self.active: dict[Exchange, PhaseRun] = {}
        self.events = 0
        self._secrets = secrets  # of each target: what must not stand in a message
        # A stack: the entries of a light load are the same few, whose cache lines and pages are warm.
        self._free = list(range(segment.geometry.inflight - 1, -1, -1))  # entries of the in-flight table
        self._worker = worker
        self._workers = workers
        self._keep_replies = plan.workload.keep_replies
        self._texts = plan.workload.keep_replies or plan.workload.count_tokens
        self._unsent_target = NO_TARGET if len(plan.targets) > 1 else 0

    @property
    def slots(self) -> int:
        """Free entries of the in-flight table: how many more requests it can hold."""
        return len(self._free)

    def enter(self, run: PhaseRun, exchange: Exchange) -> None:
        """Enters a request that is about to be dispatched, and moves NEXT_SLOT past its slot."""
        self.active[exchange] = run
        exchange.inflight_slot = slot = self._free.pop()
        segment = self.segment
        exchange.live = segment.ticks.of(exchange.series_word >> SERIES_SHIFT)
        segment.begin(slot, exchange.request, exchange.intended_ns, run.index, exchange.target)
        if not exchange.request >> TURN_SHIFT:  # after begin(): a worker killed in between must not lose the slot
            segment.counters[_NEXT_SLOT] = run.index << PHASE_SHIFT | exchange.request + 1

    def sending(self, exchange: Exchange, now_ns: int) -> bool:
        """Before send(), so that a request which may have left is never taken for one that did not. True the first time."""
        if self.segment.sent(exchange.inflight_slot, now_ns):
            exchange.live.count(SENT, now_ns)
        return exchange.attempts == 1 and not exchange.flags & STALE_RESENT

    def attempt_ended(self, exchange: Exchange) -> None:
        """Adds an attempt to the totals; its exchange begins the next one, or is recorded."""
        # Before begin_attempt() sets them to 0.
        self.events += exchange.events

    def record(self, run: PhaseRun, exchange: Exchange) -> None:
        """Writes one request: its details, then the record that commits it; then its entry is free."""
        if self.segment.sent(exchange.inflight_slot, exchange.end_ns):  # refused: it counts as sent, but never was
            exchange.live.count(SENT, exchange.end_ns)
        reply = exchange.reply
        if reply.finish:
            exchange.flags |= finish_flag(reply.finish)
        if exchange.error or exchange.kept_headers or reply.finish or reply.request_id or reply.opening_crc:
            self._detail(run, exchange)
        if self._texts:
            self._text(run, exchange)
        # Only `ok` requests enter the latency distributions, so only their gaps take room in the lane.
        self.segment.push(exchange.values(self._worker), exchange.gaps if exchange.outcome is OK else None)
        if exchange.gaps_saturated:
            self.segment.counters[_GAPS_SATURATED] += exchange.gaps_saturated
        self._clear(exchange)

    def unsent(self, run: PhaseRun, slot: int, slots: int, intended_ns: int, reason: Unsent) -> None:
        """Writes that `slots` slots from `slot` on were not sent; nothing for Unsent.NONE, they are another run's."""
        if not slots or reason is Unsent.NONE:
            return
        values = unsent_values(
            request=slot,
            intended_ns=intended_ns,
            dequeued_ns=monotonic_ns(),
            slots=slots,
            target=self._unsent_target,
            phase=run.index,
            worker=self._worker,
            reason=reason,
        )
        self.segment.push(values, None)
        counters = self.segment.counters  # a slot withdrawn late lies before those that are recorded already
        counters[_NEXT_SLOT] = max(counters[_NEXT_SLOT], run.index << PHASE_SHIFT | slot + slots * self._workers)

    def withdraw(self, run: PhaseRun, exchange: Exchange, reason: Unsent) -> None:
        """Records a request as unsent that was entered and then waited for a limit."""
        self.unsent(run, exchange.request, 1, exchange.intended_ns, reason)
        self._clear(exchange)

    def events_now(self) -> int:
        """Events of all attempts, also of those that run."""
        return self.events + sum(exchange.events for exchange in self.active if exchange.attempts)

    def _clear(self, exchange: Exchange) -> None:
        self.segment.clear(exchange.inflight_slot)
        self._free.append(exchange.inflight_slot)
        del self.active[exchange]

    def _detail(self, run: PhaseRun, exchange: Exchange) -> None:
        reply = exchange.reply
        hidden = self._secrets[exchange.target]
        headers = exchange.kept_headers
        if hidden:
            # Providers echo keys in errors and request ids; nothing of this process may carry one to disk.
            headers = {name: masked_text(value, hidden) for name, value in headers.items()}
        detail = Detail(
            exchange.request,
            run.index,
            masked_text(exchange.error, hidden) if exchange.error else "",
            masked_text(reply.request_id, hidden)[:REQUEST_ID_CHARS] if reply.request_id else "",
            reply.finish[:FINISH_CHARS] if reply.finish else "",
            headers,
            body_crc(exchange.wire) if reply.opening_crc else 0,
            reply.opening_crc,
        )
        blob = _packed(detail)
        if len(blob) > DETAIL_MAX:
            # A detail that does not fit would be dropped completely: the message matters more than the headers.
            detail.headers = {}
            detail.message = detail.message[:MESSAGE_CHARS]
            blob = _packed(detail)
        self.segment.push_detail(blob)

    def _text(self, run: PhaseRun, exchange: Exchange) -> None:
        """The reply's text for the collector, in as many details as it takes; `pieces` shows whether all arrived."""
        reply = exchange.reply
        if not (self._keep_replies or reply.output_tokens == UNKNOWN):
            return
        text = "".join([*reply.reasoning_text, *reply.text])
        # By characters, not bytes: a cut inside a UTF-8 sequence would be two replacement characters.
        pieces = [text[i : i + TEXT_PIECE_CHARS] for i in range(0, len(text), TEXT_PIECE_CHARS)]
        for piece in pieces:
            detail = Detail(exchange.request, run.index, texts=[piece], pieces=len(pieces))
            self.segment.push_detail(_packed(detail))


def body_crc(wire: bytes) -> int:
    """The checksum of a rendered request's body: equal for equal prompts, whatever the headers say. 1 us for 1 kB."""
    at = wire.find(b"\r\n\r\n")
    return zlib.crc32(memoryview(wire)[at + 4 :])
