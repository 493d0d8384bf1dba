"""The trace context of a request (W3C Trace Context, level 2), the same wherever it is asked for: in the worker that sends
it as a header, and in the exporter that makes the span. It is computed from the run and the request's number, so no
record has to carry it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

_RANDOM_BITS: Final = 56  # the rightmost bits of a trace id that samplers may decide by


class TraceContext(NamedTuple):
    """Identifiers in lower-case hexadecimal. `sampled`: whether this request's span is exported."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def trace_context(run: str, phase: int, request: int, share: float) -> TraceContext:
    """The context of one request; `share` of all are sampled, chosen by their trace ids as other samplers choose."""
    made = blake2b(f"{run}/{phase}/{request}".encode(), digest_size=24).digest()
    random = int.from_bytes(made[:16], "big") & (1 << _RANDOM_BITS) - 1
    return TraceContext(made[:16].hex(), made[16:].hex(), random >= (1.0 - share) * (1 << _RANDOM_BITS))
