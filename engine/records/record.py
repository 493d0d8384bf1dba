"""The fixed layouts that cross process borders: the request record and the one-word gap. No other file defines them.

Request record, 248 bytes of payload behind an 8-byte commit word (records.layout) in a 256-byte slot. All times are
CLOCK_MONOTONIC ns, 0 when the mark was never reached; token counts are `UNKNOWN` when the provider did not say.
`RECORD` (struct) and `record_dtype()` (numpy) are generated from the one table `FIELDS`.

Gap word: one interval between two consecutive token events of one request, in one u64:

    bits  0-41  gap in ns, saturating at GAP_MAX (73 minutes)
    bits 42-51  series = phase * targets + target
    bit  52     coalesced: several events shared a read, the gap is only an upper bound
    bit  53     stamped by the user clock (no kernel stamp in at least one end)
    bit  54     reasoning token
    bits 55-63  zero

A request's gaps become visible by the commit of its record: `gaps_end` is the gap lane's position after them.
Gaps carry no sequence bits: the record's crc covers them, so a word of an earlier lap is never taken for a new one,
and it costs a third of setting bits in each (benches/bench_ring.py).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

FIELDS: Final = (
    ("request", "Q"),  # index of the arrival in the phase's global schedule
    ("intended_ns", "Q"),
    ("dequeued_ns", "Q"),
    ("connect_start_ns", "Q"),
    ("dns_done_ns", "Q"),
    ("tcp_done_ns", "Q"),
    ("tls_done_ns", "Q"),
    ("send_ns", "Q"),  # of the first attempt
    ("last_send_ns", "Q"),  # of the last attempt
    ("headers_ns", "Q"),
    ("first_event_ns", "Q"),
    ("first_token_ns", "Q"),
    ("first_output_ns", "Q"),
    ("last_token_ns", "Q"),
    ("end_ns", "Q"),
    ("itl_max_ns", "Q"),
    ("gaps_end", "Q"),
    ("waited_ns", "Q"),  # of send - intended: for a connection to open, max_in_flight, rpm, tpm or the budget
    ("slots", "Q"),  # schedule slots this record stands for: 1, or more for a run of unsent ones
    ("sent_bytes", "I"),
    ("received_bytes", "I"),
    ("input_tokens", "I"),
    ("cached_tokens", "I"),
    ("cache_write_tokens", "I"),
    ("output_tokens", "I"),
    ("reasoning_tokens", "I"),
    ("billed_input_tokens", "I"),  # only with BILLED_APART
    ("billed_output_tokens", "I"),
    ("events", "I"),
    ("token_events", "I"),
    ("coalesced", "I"),  # gaps that are upper bounds
    ("empty_events", "I"),  # events without a token between the first and the last token: text that was held back
    ("asked_input_tokens", "I"),  # what the workload asked for, 0 where it asked for nothing
    ("asked_output_tokens", "I"),
    ("session", "I"),
    ("inflight_slot", "I"),
    ("flags", "I"),
    ("rtt_us", "I"),  # lowest round-trip time of its connection, to a proxy where there is one; UNKNOWN
    ("provider_us", "I"),  # what the provider says that it took itself; UNKNOWN
    ("target", "H"),
    ("phase", "H"),
    ("worker", "H"),
    ("attempts", "H"),
    ("http_status", "H"),
    ("turn", "H"),
    ("tcp_retransmits", "H"),  # segments of the request, or of its handshake, sent again; RETRANSMITS_UNKNOWN
    ("outcome", "B"),
    ("unsent", "B"),
)
PAYLOAD_BYTES: Final = 248
SLOT_BYTES: Final = 256
UNKNOWN: Final = 0xFFFF_FFFF
NO_TARGET: Final = 0xFFFF
RETRANSMITS_UNKNOWN: Final = 0xFFFF
RETRANSMITS_MAX: Final = 0xFFFE
_UNKNOWN: Final = {"rtt_us": UNKNOWN, "provider_us": UNKNOWN, "tcp_retransmits": RETRANSMITS_UNKNOWN}
TOKEN_FIELDS: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")

_PACKED = "<" + "".join(code for _, code in FIELDS)
RECORD: Final = struct.Struct(f"{_PACKED}{PAYLOAD_BYTES - struct.calcsize(_PACKED)}x")


class Outcome(IntEnum):
    """How a sent request ended (METRICS: Outcomes). The member's lower-case name is what files and people see."""

    UNSENT = 0  # the slot was not sent: see Unsent
    OK = 1
    CONNECT_DNS = 2
    CONNECT_REFUSED = 3
    CONNECT_TIMEOUT = 4
    CONNECT_TLS = 5
    CONNECT_RESET = 6
    TIMEOUT_FIRST_TOKEN = 7
    TIMEOUT_TOTAL = 8
    HTTP_AUTH = 9
    HTTP_RATE_LIMITED = 10
    HTTP_INVALID = 11
    HTTP_OVERLOADED = 12
    HTTP_SERVER = 13
    HTTP_OTHER = 14
    STREAM_ERROR = 15
    STREAM_TRUNCATED = 16
    STREAM_MALFORMED = 17
    CONTENT_FILTERED = 18
    CANCELLED = 19
    LOST = 20
    IN_FLIGHT = 21  # still running when the drain limit of the run passed


OUTCOMES: Final = len(Outcome)
FAILURES: Final = (*(o for o in Outcome if Outcome.OK < o < Outcome.CANCELLED), Outcome.LOST)


class Unsent(IntEnum):
    """Why a slot of the schedule was not sent."""

    NONE = 0
    NO_CAPACITY = 1
    BUDGET = 2
    STOPPED = 3
    WORKER_DOWN = 4


REUSED: Final = 1 << 0  # on a kept-alive connection
USER_CLOCK: Final = 1 << 1  # at least one arrival mark is a user-space stamp
CLOCK_STEPPED: Final = 1 << 2  # CLOCK_REALTIME was stepped while it ran: intervals are not to be believed
TLS: Final = 1 << 3
STREAMED: Final = 1 << 4  # the reply was a stream (TTFT exists)
TTFT_COALESCED: Final = 1 << 5  # the first token shared a late read with later events: TTFT is an upper bound
STALE_RESENT: Final = 1 << 6  # sent again on a fresh connection after a stale pooled one died before any reply byte
ABORT_PLANNED: Final = 1 << 7  # cancelled because the plan said so
FRAMED_ONCE: Final = 1 << 8  # the reply came in one piece although a stream was asked for
LOCAL_TOKENS: Final = 1 << 9  # output_tokens counted by a local tokenizer, not by the provider
UNPRICED_PARTS: Final = 1 << 10  # the provider bills something that no price per token covers: the cost is unknown
BILLED_APART: Final = 1 << 11  # billed_input_tokens and billed_output_tokens are what the provider bills
FINISH_STOP: Final = 1 << 12  # the reply said that it ended by itself
FINISH_LENGTH: Final = 1 << 13  # ... at its token limit
FINISH_OTHER: Final = 1 << 14  # ... for another reason; none of the three: it named no reason
IDENTICAL_REPLY: Final = (
    1 << 15
)  # set by the collector: an equal reply to another prompt came before (collectors.conduct)
REPEATED_PROMPT: Final = 1 << 16  # ... the warm-up asked this prompt before
REPLY_COMPARED: Final = 1 << 17  # ... its text was long enough to be compared with those of others

GAP_BITS: Final = 42
GAP_MAX: Final = (1 << GAP_BITS) - 1
SERIES_SHIFT: Final = 42
SERIES_MAX: Final = 1 << 10
GAP_COALESCED: Final = 1 << 52
GAP_USER_CLOCK: Final = 1 << 53
GAP_REASONING: Final = 1 << 54


def unsent_values(
    *,
    request: int,
    slots: int,
    intended_ns: int,
    dequeued_ns: int,
    target: int,
    phase: int,
    worker: int,
    reason: Unsent,
) -> tuple[int, ...]:
    """The record of `slots` schedule slots from `request` on that were not sent."""
    return _values(
        request=request,
        slots=slots,
        intended_ns=intended_ns,
        dequeued_ns=dequeued_ns,
        target=target,
        phase=phase,
        worker=worker,
        inflight_slot=UNKNOWN,
        outcome=Outcome.UNSENT,
        unsent=reason,
    )


def left_behind_values(
    *,
    request: int,
    intended_ns: int,
    send_ns: int,
    phase: int,
    target: int,
    worker: int,
    sent: bool,
    dead: bool,
    session: int = 0,
    turn: int = 0,
) -> tuple[int, ...]:
    """The record of a request that its worker left in flight: lost if it was sent and the worker died."""
    tokens = dict.fromkeys(TOKEN_FIELDS, UNKNOWN)
    known = {"request": request, "slots": 1, "intended_ns": intended_ns, "target": target, "phase": phase}
    known |= {"session": session, "turn": turn}
    if sent:
        outcome = Outcome.LOST if dead else Outcome.IN_FLIGHT
        ended = {"send_ns": send_ns, "last_send_ns": send_ns, "attempts": 1, "outcome": outcome}
    else:
        ended = {"unsent": Unsent.WORKER_DOWN}
    return _values(worker=worker, **known, **ended, **tokens)


def _values(**known: int) -> tuple[int, ...]:
    """All fields in the order of FIELDS, 0 where nothing is known. A request that ran has Exchange.values()."""
    return tuple((dict.fromkeys((name for name, _ in FIELDS), 0) | _UNKNOWN | known).values())


def record_dtype() -> np.dtype[Any]:
    """The numpy view of one slot's payload, field for field the layout of `RECORD`, with PAYLOAD_BYTES as item size."""
    import numpy as np  # the worker never needs numpy

    kinds = {"Q": "<u8", "I": "<u4", "H": "<u2", "B": "u1"}
    offsets = [struct.calcsize("<" + "".join(code for _, code in FIELDS[:i])) for i in range(len(FIELDS))]
    return np.dtype(
        {
            "names": [name for name, _ in FIELDS],
            "formats": [kinds[code] for _, code in FIELDS],
            "offsets": offsets,
            "itemsize": PAYLOAD_BYTES,
        }
    )
