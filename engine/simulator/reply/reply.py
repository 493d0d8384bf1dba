"""One reply being sent, step by step: opening, tokens at their times, closing, and the faults in the middle of it.

Each step is an action of the pacer, called with the time it was due; a step returns when the next one is. The clock is
read right before the bytes go to send(), and that reading is what the event says (`sent_ns`) and what the log says.

`tokens()` is the hot path: one pre-rendered frame, one format operation, one send. It may be taken for
positions below `_plain_until` only. Everything that is not plain (the first and last token, the first visible one, the
position of a fault, bursts, split writes, a client that is gone) takes `_unusual_tokens()`, which then says how long
the next ones are plain.
"""

from __future__ import annotations

import time
from typing import Final

from .. import faults
from ..framing import LAST_CHUNK, Frame, fill
from ..log import Row
from ..providers.provider import VARIANT_BYTES
from ..stats import LATENESS, LATENESS_BUCKETS, LATENESS_SHIFT, LATENESS_TOP_NS, SLOT
from .client import Client
from .service import Service
from .template import Rendering

_LATENESS_MAX: Final = SLOT["lateness_max_ns"]
MS: Final = 1_000_000
FAILURE: Final = "The server had an error while processing your request"
SPLIT_TOKENS: Final = 4  # replies that are split at every byte are cut to this, each byte is a system call


class Reply:
    """One streamed or complete reply on its way. `begin()` starts it; it ends itself and leaves the service."""

    __slots__ = (
        "_constant_gap_ns", "_counts", "_done", "_extra_events", "_frames", "_gap_extra_ns", "_keep_alive", "_last_ns",
        "_late_ns", "_next_visible", "_per_write", "_plain_until", "_service", "_stamps", "_writes", "client",
        "fault_position", "index", "opened", "position", "rendering", "request_id", "row", "total", "variant",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        client: Client,
        *,
        row: Row,
        rendering: Rendering,
        index: int,
        keep_alive: bool,
        variant: bytes,
    ) -> None:
        self._service = service
        self.variant = variant
        self.client: Client | None = client
        self.row = row
        self.index = index
        self.request_id = row.id.encode()
        self.rendering = rendering
        self._keep_alive = keep_alive
        self._counts = service.stats.mine
        self.total = rendering.events
        self.fault_position = int(self.total * service.script.fault_at) if row.fault in faults.MID_STREAM else -1
        self._per_write = service.script.events_per_write
        self._next_visible = -(-rendering.outline.reasoning // rendering.outline.per_event)
        self._gap_extra_ns = service.script.itl_per_running_us * 1000
        gap_ns = service.draws.itl.constant
        self._constant_gap_ns = gap_ns if gap_ns and not self._gap_extra_ns else 0
        self._frames = rendering.frames
        self._plain_until = 0
        self.position = 0
        self._extra_events = 0  # beyond one a token event
        self._last_ns = 0
        self._late_ns = 0
        self.opened = False
        self._stamps: list[int] | None = [] if service.log_tokens else None
        self._done: list[int] = []
        self._writes = service.script.writes_per_event

    def begin(self, start_ns: int) -> None:
        """Service begins: `start_ns` is what all its times count from."""
        row, script, pacer = self.row, self._service.script, self._service.pacer
        row.service_ns = start_ns
        if row.fault == faults.SLOW_HEAD:
            start_ns += int(script.slow_head_ms * MS)
        first_ns = start_ns + self._service.draws.ttft.at(self.index)
        if not row.stream:
            pacer.at(first_ns + sum(self._gap_ns(step) for step in range(1, self.total)), self.complete)
            return
        if script.opening == "early" and first_ns > start_ns:
            pacer.at(start_ns, self.opening)
            if script.ping_ms or row.fault == faults.COMMENTS:
                pacer.at(start_ns + self._ping_ns(first_ns - start_ns), self.ping)
        if self._per_write > 1:
            first_ns += sum(self._gap_ns(step) for step in range(1, min(self._per_write, self.total)))
        pacer.at(first_ns, self.tokens)

    def opening(self, due_ns: int) -> None:
        """Head and first events, before any token."""
        if self.client is not None:
            self.send(self.open_at(time.monotonic_ns()))

    def ping(self, due_ns: int) -> int | None:
        """A comment line before the first token, then the next one."""
        if self.client is None or self.position:
            return None
        frame = self.rendering.ping()
        self.row.events += frame.events
        self.send(self._filled(frame, time.monotonic_ns()))
        return due_ns + self._ping_ns(self._service.draws.ttft.at(self.index))

    def tokens(self, due_ns: int) -> int | None:
        """The next write of token events; returns when the one after it is due."""
        position = self.position
        if position >= self._plain_until or self.client is None:
            return self._unusual_tokens(due_ns)
        # The hot path: one event of one token in the middle of a stream.
        frame = self._frames.get(position) or self.rendering.token(position)
        now_ns = time.monotonic_ns()
        self.client.send(frame[0] % (now_ns, self.request_id))
        self.position = position = position + 1
        self._last_ns = now_ns
        late_ns = now_ns - due_ns
        self._counts[LATENESS + (late_ns >> LATENESS_SHIFT if late_ns < LATENESS_TOP_NS else LATENESS_BUCKETS - 1)] += 1
        if late_ns > self._late_ns:
            self._late_ns = late_ns
        if self._stamps is not None:
            self._stamps.append(now_ns)
            self._done.append(time.monotonic_ns())
        return due_ns + (self._constant_gap_ns or self._gap_ns(position))

    def _unusual_tokens(self, due_ns: int) -> int | None:
        """A write with anything about it: the first or last of its kind, a burst, a fault, a client that is gone."""
        client, position, row, script = self.client, self.position, self.row, self._service.script
        if client is None:
            return None
        if position == self.fault_position:
            return self._inject_fault()
        if position == self.total:  # a reply without any token
            self.closing(due_ns)
            return None
        now_ns = time.monotonic_ns()
        until, payload = self._burst(position, now_ns)
        if not self.opened:
            payload = self.open_at(now_ns) + payload
        last = until == self.total != self.fault_position
        if last and script.closing == "with_last":
            payload += self._close_at(now_ns)
        now_ns = self.send(payload) or now_ns
        self._note(now_ns, due_ns, until)
        if self.client is None:  # the client was gone
            return None
        if not last:
            return due_ns + sum(self._gap_ns(step) for step in range(until, min(until + self._per_write, self.total)))
        if row.end_sent_ns is not None:
            self.end(completed=True)
        elif script.closing_ms:
            self._service.pacer.at(now_ns + int(script.closing_ms * MS), self.closing)
        else:
            self.closing(now_ns)
        return None

    def closing(self, due_ns: int) -> None:
        """Finish reason, usage, terminal marker, end of the body."""
        if self.client is None:
            return
        now_ns = time.monotonic_ns()
        payload = b"" if self.opened else self.open_at(now_ns)
        self.send(payload + self._close_at(now_ns))
        self.end(completed=True)

    def complete(self, due_ns: int) -> None:
        """A reply that is no stream."""
        if self.client is None:
            return
        now_ns, row = time.monotonic_ns(), self.row
        fault = row.fault
        body = self._filled(self.rendering.complete, now_ns)
        if fault == faults.MALFORMED:
            body = body[:-1] + b","
        head = self._service.head(row, self.rendering.provider, keep_alive=self._keep_alive, length=len(body))
        if fault in faults.MID_STREAM and fault != faults.MALFORMED:
            self.send(head + body[: len(body) // 2])
            self._cut()
            return
        row.head_sent_ns = row.end_sent_ns = now_ns
        row.events, row.tokens, row.reasoning_tokens = (
            1,
            self.rendering.outline.reasoning + self.rendering.outline.visible,
            self.rendering.outline.reasoning,
        )
        row.usage, row.finish = self.rendering.outline.usage != "none", self.rendering.outline.finish
        self.send(head + body)
        self.end(completed=True)

    def abandoned(self, *, by_client: bool) -> None:
        """The client is gone."""
        if self.client is not None:
            self.row.client_closed = by_client
            self.end(completed=False)

    def send(self, payload: bytes) -> int:
        """Sends to the client; returns the time before the last byte if they went one by one, else 0."""
        client = self.client
        if client is None:
            return 0
        if self.row.fault == faults.SPLIT:
            return client.send_split(payload, len(payload))
        if self._writes > 1:
            return client.send_split(payload, self._writes)
        client.send(payload)
        return 0

    def _inject_fault(self) -> int | None:
        """The fault of this stream happens now; returns when its tokens go on, if they do."""
        fault, rendering, row = self.row.fault, self.rendering, self.row
        now_ns = time.monotonic_ns()
        payload = b"" if self.opened else self.open_at(now_ns)
        if fault == faults.MALFORMED:
            frame = rendering.broken(min(self.position, max(0, self.total - 1)))
            row.events += frame.events
            self.fault_position = -1
            self.send(payload + self._filled(frame, now_ns))
            return now_ns
        if fault == faults.ERROR_EVENT:
            frame = rendering.failure(FAILURE, position=self.position)
            row.events += frame.events
            payload += self._filled(frame, now_ns)
        if fault in (faults.ERROR_EVENT, faults.TRUNCATE):
            row.end_sent_ns = now_ns
            self.send(payload + LAST_CHUNK)
            self.end(completed=True)
            return None
        if fault == faults.RESET:
            frame = rendering.token(min(self.position, max(0, self.total - 1)))
            token = self._token(frame, now_ns)
            payload += token[: len(token) // 2]
        self.send(payload)
        self._cut()
        return None

    def _cut(self) -> None:
        """The connection breaks, or falls silent, in the middle of the body."""
        client, fault = self.client, self.row.fault
        if client is None or fault == faults.STALL:
            return
        self.end(completed=False, keep=True)
        if fault == faults.RESET:
            client.reset()
        else:  # CUT, and TRUNCATE of a body with a length
            client.finish()

    def open_at(self, now_ns: int) -> bytes:
        frame, row = self.rendering.opening, self.row
        self.opened = True
        row.head_sent_ns = now_ns
        row.events += frame.events
        head = self._service.head(row, self.rendering.provider, keep_alive=self._keep_alive)
        return head + self._filled(frame, now_ns)

    def _close_at(self, now_ns: int) -> bytes:
        frame, outline = self.rendering.closing, self.rendering.outline
        self.row.events += frame.events
        self.row.end_sent_ns = now_ns
        self.row.usage, self.row.finish = outline.usage != "none", outline.finish
        return self._filled(frame, now_ns)

    def _filled(self, frame: Frame, now_ns: int) -> bytes:
        return fill(frame, self.request_id, now_ns).replace(VARIANT_BYTES, self.variant)

    def _token(self, frame: Frame, now_ns: int) -> bytes:
        """A token event that may be the first of its kind, whose word is this reply's own. All others are not."""
        return (frame.format % ((now_ns, self.request_id) * frame.stamps)).replace(VARIANT_BYTES, self.variant)

    def _burst(self, position: int, now_ns: int) -> tuple[int, bytes]:
        """(position after it, bytes) of one write from `position` on, up to where a fault begins."""
        until = min(position + self._per_write, self.total)
        if position < self.fault_position:
            until = min(until, self.fault_position)
        payload = b""
        for index in range(position, until):
            frame = self.rendering.token(index)
            payload += self._token(frame, now_ns)
            self._extra_events += frame.events - 1
        return until, payload

    def _note(self, now_ns: int, due_ns: int, until: int) -> None:
        """Records one token write, and decides how long the next ones are plain."""
        row, first = self.row, self.position
        if not first:
            row.first_token_sent_ns = now_ns
        if row.first_output_sent_ns is None and until > self._next_visible:
            row.first_output_sent_ns = now_ns
        self._last_ns = now_ns
        self.position = until
        if self._stamps is not None:
            self._stamps += [now_ns] * (until - first)
            self._done += [time.monotonic_ns()] * (until - first)
        late_ns = now_ns - due_ns
        self._counts[LATENESS + min(late_ns >> LATENESS_SHIFT, LATENESS_BUCKETS - 1)] += 1
        self._late_ns = max(late_ns, self._late_ns)
        if self._per_write == self._writes == 1 and row.fault != faults.SPLIT:
            marks = (self.total - 1, self.fault_position, self._next_visible)
            self._plain_until = min(mark for mark in marks if mark >= until or mark == self.total - 1)

    def _gap_ns(self, step: int) -> int:
        gap_ns = self._service.draws.itl.at(self.index, step)
        if self._gap_extra_ns:
            gap_ns += int(self._gap_extra_ns * (self._service.slots.running - 1))
        return gap_ns

    def _ping_ns(self, wait_ns: int) -> int:
        return int(self._service.script.ping_ms * MS) or max(MS, wait_ns // 4)

    def end(self, *, completed: bool, keep: bool = False) -> None:
        """Fills in the row and lets go of the client: closes it, or gives it its next request."""
        client, row, outline = self.client, self.row, self.rendering.outline
        if client is None:  # it broke while the last bytes were sent
            return
        self.client = None
        row.completed = completed
        if row.stream:
            per_event = outline.per_event
            thinking = min(self.position, self._next_visible)
            row.token_events = self.position
            row.events += self.position + self._extra_events
            row.last_token_sent_ns = self._last_ns or None
            row.max_lateness_ns = self._late_ns
            self._counts[_LATENESS_MAX] = max(self._counts[_LATENESS_MAX], self._late_ns)
            row.reasoning_tokens = min(outline.reasoning, thinking * per_event)
            row.tokens = row.reasoning_tokens + min(outline.visible, (self.position - thinking) * per_event)
            if self._stamps is not None:
                row.token_sent_ns, row.token_done_ns = self._stamps, self._done
        self._service.leave(self, row, client)
        if keep or not client.open:
            return
        if self._keep_alive and row.fault != faults.KEEP_ALIVE_LIE:
            client.done()
        else:
            client.reply = None
            client.finish()
