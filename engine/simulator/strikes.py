"""What the faults do that strike in the middle of a reply: to a stream after some tokens, to a body half sent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from . import faults
from .framing import LAST_CHUNK, fill

if TYPE_CHECKING:
    from .reply import Reply

FAILURE: Final = "The server had an error while processing your request"


def strike(reply: Reply) -> int | None:
    """The fault of this stream happens now; gives when its tokens go on, if they do."""
    fault, rendering, row = reply.row.fault, reply.rendering, reply.row
    now_ns = time.monotonic_ns()
    payload = b"" if reply.opened else reply.open_at(now_ns)
    if fault == faults.MALFORMED:
        frame = rendering.broken(min(reply.position, max(0, reply.total - 1)))
        row.events += frame.events
        reply.strike_at = -1
        reply.send(payload + fill(frame, reply.request_id, now_ns))
        return now_ns
    if fault == faults.ERROR_EVENT:
        frame = rendering.failure(FAILURE, position=reply.position)
        row.events += frame.events
        payload += fill(frame, reply.request_id, now_ns)
    if fault in (faults.ERROR_EVENT, faults.TRUNCATE):
        row.end_sent_ns = now_ns
        reply.send(payload + LAST_CHUNK)
        reply.end(completed=True)
        return None
    if fault == faults.RESET:
        frame = rendering.token(min(reply.position, max(0, reply.total - 1)))
        token = frame.format % ((now_ns, reply.request_id) * frame.stamps)
        payload += token[: len(token) // 2]
    reply.send(payload)
    cut(reply)
    return None


def cut(reply: Reply) -> None:
    """The connection breaks, or falls silent, in the middle of the body."""
    connection, fault = reply.connection, reply.row.fault
    if connection is None or fault == faults.STALL:
        return
    reply.end(completed=False, keep=True)
    if fault == faults.RESET:
        connection.reset()
    else:  # CUT, and TRUNCATE of a body with a length
        connection.finish()
