"""One reply being sent, step by step: opening, tokens at their times, closing, and the faults that strike in between.

Each step is an action of the pacer. The clock is read right before the bytes go to send(), and that reading is what
the event says (`sent_ns`) and what the log says.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from llm_latency_lens.engine.simulator import faults
from llm_latency_lens.engine.simulator.framing import LAST_CHUNK, fill
from llm_latency_lens.engine.simulator.log import Row
from llm_latency_lens.engine.simulator.stats import LATENESS, LATENESS_BUCKETS, LATENESS_STEP_NS, SLOT
from llm_latency_lens.engine.simulator.template import Rendering

if TYPE_CHECKING:
    from llm_latency_lens.engine.simulator.admission import Admission
    from llm_latency_lens.engine.simulator.connection import Connection

_LATENESS_MAX: Final = SLOT["lateness_max_ns"]
MS: Final = 1_000_000
_FAILURE: Final = "The server had an error while processing your request"
SPLIT_TOKENS: Final = 4  # replies that are split at every byte are cut to this, each byte is a system call


class Reply:
    """One streamed or whole reply on its way. `begin()` starts it; it ends itself and tells the admission."""

    __slots__ = (
        "_counts", "_gap_extra_ns", "_keep_alive", "_next_visible", "_opened", "_per_write", "_position", "_request_id",
        "_stamps", "_strike", "_total", "admission", "connection", "index", "rendering", "row",
    )  # fmt: skip

    def __init__(
        self,
        admission: Admission,
        connection: Connection,
        *,
        row: Row,
        rendering: Rendering,
        index: int,
        keep_alive: bool,
    ) -> None:
        self.admission = admission
        self.connection: Connection | None = connection
        self.row = row
        self.index = index
        self._request_id = row.id.encode()
        self.rendering = rendering
        self._keep_alive = keep_alive
        self._counts = admission.stats.mine
        self._total = rendering.events
        self._strike = int(self._total * admission.script.fault_at) if row.fault in faults.MID_STREAM else -1
        self._per_write = admission.script.events_per_write
        self._next_visible = -(-rendering.outline.reasoning // rendering.outline.per_event)
        self._gap_extra_ns = admission.script.itl_per_running_us * 1000
        self._position = 0
        self._opened = False
        self._stamps: list[int] | None = [] if admission.log_tokens else None

    def begin(self, start_ns: int) -> None:
        """Service begins: `start_ns` is what all its times count from."""
        row, script, pacer = self.row, self.admission.script, self.admission.pacer
        row.service_ns = start_ns
        if row.fault == faults.SLOW_HEAD:
            start_ns += int(script.slow_head_ms * MS)
        first_ns = start_ns + self.admission.draws.ttft.at(self.index)
        if not row.stream:
            pacer.at(first_ns + sum(self._gap_ns(step) for step in range(1, self._total)), self.whole)
            return
        if script.opening == "early" and first_ns > start_ns:
            pacer.at(start_ns, self.opening)
            if script.ping_ms or row.fault == faults.COMMENTS:
                pacer.at(start_ns + self._ping_ns(first_ns - start_ns), self.ping)
        if self._per_write > 1:
            first_ns += sum(self._gap_ns(step) for step in range(1, min(self._per_write, self._total)))
        pacer.at(first_ns, self.tokens)

    def opening(self, due_ns: int) -> None:
        """Head and first events, before any token."""
        if self.connection is not None:
            self._send(self._opening(time.monotonic_ns()))

    def ping(self, due_ns: int) -> None:
        """A sign of life before the first token, then the next one."""
        if self.connection is None or self._position:
            return
        frame = self.rendering.ping()
        self.row.events += frame.events
        self._send(fill(frame, self._request_id, time.monotonic_ns()))
        self.admission.pacer.at(due_ns + self._ping_ns(self.admission.draws.ttft.at(self.index)), self.ping)

    def tokens(self, due_ns: int) -> None:
        """The next write of token events. The hot path."""
        connection = self.connection
        if connection is None:
            return
        position, row = self._position, self.row
        if position == self._strike:
            self._struck()
            return
        if position == self._total:  # a reply without any token
            self.closing(due_ns)
            return
        now_ns = time.monotonic_ns()
        stamp = (now_ns, self._request_id)
        frame = self.rendering.token(position)
        payload = frame.format % (stamp if frame.stamps == 1 else stamp * frame.stamps)
        row.events += frame.events
        position += 1
        if self._per_write > 1:
            position, payload = self._burst(position, payload, stamp)
        if not self._opened:
            payload = self._opening(now_ns) + payload
        last = position == self._total
        if last and self.admission.script.closing == "with_last":
            payload += self._closing(now_ns)
        if row.fault == faults.SPLIT:
            now_ns = connection.send_split(payload)
        else:
            connection.send(payload)
        self._note(now_ns, due_ns, position)
        if self.connection is None:  # the client was gone
            return
        if not last:
            steps = (
                range(position, min(position + self._per_write, self._total)) if self._per_write > 1 else (position,)
            )
            self.admission.pacer.at(due_ns + sum([self._gap_ns(step) for step in steps]), self.tokens)
        elif row.end_sent_ns is not None:
            self._end(completed=True)
        elif self.admission.script.closing_ms:
            self.admission.pacer.at(now_ns + int(self.admission.script.closing_ms * MS), self.closing)
        else:
            self.closing(now_ns)

    def closing(self, due_ns: int) -> None:
        """Finish reason, usage, terminal marker, end of the body."""
        if self.connection is None:
            return
        now_ns = time.monotonic_ns()
        payload = b"" if self._opened else self._opening(now_ns)
        self._send(payload + self._closing(now_ns))
        self._end(completed=True)

    def whole(self, due_ns: int) -> None:
        """A reply that is no stream."""
        if self.connection is None:
            return
        now_ns, row = time.monotonic_ns(), self.row
        fault = row.fault
        body = fill(self.rendering.whole, self._request_id, now_ns)
        if fault == faults.MALFORMED:
            body = body[:-1] + b","
        head = self.admission.head(row, self.rendering.provider, keep_alive=self._keep_alive, length=len(body))
        if fault in faults.MID_STREAM and fault != faults.MALFORMED:
            self._send(head + body[: len(body) // 2])
            self._cut()
            return
        row.head_sent_ns = row.end_sent_ns = now_ns
        row.events, row.tokens, row.reasoning_tokens = (
            1,
            self.rendering.outline.output_tokens,
            self.rendering.outline.reasoning,
        )
        row.usage, row.finish = self.rendering.outline.usage != "none", self.rendering.outline.finish
        self._send(head + body)
        self._end(completed=True)

    def abandoned(self, *, by_client: bool) -> None:
        """The connection is gone."""
        if self.connection is not None:
            self.row.client_closed = by_client
            self._end(completed=False)

    def _send(self, payload: bytes) -> None:
        assert self.connection
        if self.row.fault == faults.SPLIT:
            self.connection.send_split(payload)
        else:
            self.connection.send(payload)

    def _opening(self, now_ns: int) -> bytes:
        frame, row = self.rendering.opening, self.row
        self._opened = True
        row.head_sent_ns = now_ns
        row.events += frame.events
        return self.admission.head(row, self.rendering.provider, keep_alive=self._keep_alive) + fill(
            frame, self._request_id, now_ns
        )

    def _closing(self, now_ns: int) -> bytes:
        frame, outline = self.rendering.closing, self.rendering.outline
        self.row.events += frame.events
        self.row.end_sent_ns = now_ns
        self.row.usage, self.row.finish = outline.usage != "none", outline.finish
        return fill(frame, self._request_id, now_ns)

    def _burst(self, position: int, payload: bytes, stamp: tuple[int, bytes]) -> tuple[int, bytes]:
        """More events for the same write, up to where a fault strikes."""
        until = min(position - 1 + self._per_write, self._total)
        if position <= self._strike:
            until = min(until, self._strike)
        for index in range(position, until):
            frame = self.rendering.token(index)
            payload += frame.format % (stamp * frame.stamps)
            self.row.events += frame.events
            if self._stamps is not None:
                self._stamps.append(stamp[0])
        return max(until, position), payload

    def _note(self, now_ns: int, due_ns: int, position: int) -> None:
        """Books one token write."""
        row = self.row
        if not self._position:
            row.first_token_sent_ns = now_ns
        if row.first_output_sent_ns is None and position > self._next_visible:
            row.first_output_sent_ns = now_ns
        row.last_token_sent_ns = now_ns
        self._position = position
        if self._stamps is not None:
            self._stamps.append(now_ns)
        late_ns = now_ns - due_ns
        bucket = late_ns // LATENESS_STEP_NS
        self._counts[LATENESS + (bucket if bucket < LATENESS_BUCKETS else LATENESS_BUCKETS - 1)] += 1
        if late_ns > row.max_lateness_ns:
            row.max_lateness_ns = late_ns
            if late_ns > self._counts[_LATENESS_MAX]:
                self._counts[_LATENESS_MAX] = late_ns

    def _gap_ns(self, step: int) -> int:
        gap_ns = self.admission.draws.itl.at(self.index, step)
        if self._gap_extra_ns:
            gap_ns += int(self._gap_extra_ns * (self.admission.slots.running - 1))
        return gap_ns

    def _ping_ns(self, wait_ns: int) -> int:
        return int(self.admission.script.ping_ms * MS) or max(MS, wait_ns // 4)

    def _struck(self) -> None:
        """The mid-stream fault of this reply happens now."""
        fault, rendering, row = self.row.fault, self.rendering, self.row
        now_ns = time.monotonic_ns()
        payload = b"" if self._opened else self._opening(now_ns)
        if fault == faults.MALFORMED:
            frame = rendering.broken(min(self._position, self._total - 1) if self._total else 0)
            row.events += frame.events
            self._strike = -1
            self._send(payload + fill(frame, self._request_id, now_ns))
            self.admission.pacer.at(now_ns, self.tokens)
        elif fault == faults.ERROR_EVENT:
            frame = rendering.failure(_FAILURE, position=self._position)
            row.events += frame.events
            row.end_sent_ns = now_ns
            self._send(payload + fill(frame, self._request_id, now_ns) + LAST_CHUNK)
            self._end(completed=True)
        elif fault == faults.TRUNCATE:
            row.end_sent_ns = now_ns
            self._send(payload + LAST_CHUNK)
            self._end(completed=True)
        else:
            self._send(payload)
            self._cut()

    def _cut(self) -> None:
        """The connection breaks, or falls silent, in the middle of the body."""
        connection, fault = self.connection, self.row.fault
        if connection is None or fault == faults.STALL:
            return
        if fault == faults.RESET:
            if self.row.stream:
                frame = self.rendering.token(min(self._position, max(0, self._total - 1)))
                half = frame.format % ((time.monotonic_ns(), self._request_id) * frame.stamps)
                self._send(half[: len(half) // 2])
            self._end(completed=False, keep=True)
            connection.reset()
        else:  # CUT, and TRUNCATE of a body with a length
            self._end(completed=False, keep=True)
            connection.finish()

    def _end(self, *, completed: bool, keep: bool = False) -> None:
        """Fills in the row and lets go of the connection: closes it, or gives it its next request."""
        connection, row, outline = self.connection, self.row, self.rendering.outline
        assert connection
        self.connection = None
        row.completed = completed
        if row.stream:
            per_event = outline.per_event
            thinking = min(self._position, self._next_visible)
            row.token_events = self._position
            row.reasoning_tokens = min(outline.reasoning, thinking * per_event)
            row.tokens = row.reasoning_tokens + min(outline.visible, (self._position - thinking) * per_event)
            row.token_sent_ns = self._stamps
        self.admission.ended(self, connection)
        if keep or not connection.open:
            return
        if self._keep_alive and row.fault != faults.KEEP_ALIVE_LIE:
            connection.done()
        else:
            connection.reply = None
            connection.finish()
