"""The metrics of one request each (engine.metrics), computed for a batch of records at once. Pure: records in, columns out.

A column is (has, value): which records have the metric, and its value in histogram units (metrics.SCALES), arbitrary
where `has` is false. A mark that was never reached makes no sample. Which outcomes may enter which distribution is
collectors.series' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engine.metrics import METRICS, SCALES
from ..engine.records.record import (
    FINISH_LENGTH,
    FINISH_OTHER,
    FINISH_STOP,
    FRAMED_ONCE,
    IDENTICAL_REPLY,
    LOCAL_TOKENS,
    REPEATED_PROMPT,
    REPLY_COMPARED,
    REUSED,
    STREAMED,
    UNKNOWN,
)
from .bounds import LENGTH_BOUND

Records = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]
Values = npt.NDArray[np.int64]
Column = tuple[Flags, Values]

_CONNECTION_MARKS: Final = frozenset({"connect_start", "dns_done", "tcp_done"})
_TPS: Final = 1e9 * SCALES["decode_tps"]


def measures(records: Records) -> dict[str, Column]:
    """Every metric of the catalogue but the pooled `itl_ms`, and `cost_usd`, which needs a price (collectors.cost)."""
    opened = (records["flags"] & REUSED) == 0
    columns: dict[str, Column] = {}
    for metric in METRICS.values():
        if metric.start:
            has, value = _between(_begun(records, metric.start), records[f"{metric.end}_ns"])
            columns[metric.name] = (has & opened if metric.start in _CONNECTION_MARKS else has, value)
    columns |= _pace(records)
    has, late = columns["lateness_ms"]
    columns["client_lateness_ms"] = (has, np.maximum(late - _signed(records["waited_ns"]), 0))
    columns |= _parts(records, columns["ttft_ms"])
    columns["tokens_per_event"] = _tokens_per_event(records)
    columns["itl_max_ms"] = (records["itl_max_ns"] > 0, _signed(records["itl_max_ns"]))
    return columns


def _parts(records: Records, ttft: Column) -> dict[str, Column]:
    """Whose time the first token took, as far as the kernel and the provider say."""
    near = records["rtt_us"] != UNKNOWN
    rtt = _signed(records["rtt_us"]) * 1000
    has, value = ttft
    return {
        "rtt_ms": (near, rtt),
        "server_ttft_ms": (has & near, np.maximum(value - rtt, 0)),
        "provider_ms": (records["provider_us"] != UNKNOWN, _signed(records["provider_us"]) * 1000),
    }


def output_tokens(records: Records) -> Values:
    """Output tokens by the provider's usage (or the local tokenizer); where neither says, the token events."""
    said = records["output_tokens"]
    return np.where(said != UNKNOWN, said, records["token_events"]).astype(np.int64)


def in_bursts(records: Records) -> Flags:
    """Replies of which more than half of the token events shared their read with the one before: something between
    buffers. Their tokens' times are the buffer's: 200 tokens that end within 1 ms are no 200,000 tokens/s."""
    return records["coalesced"].astype(np.int64) * 2 > records["token_events"]


def conduct(records: Records) -> dict[str, Flags]:
    """What ok replies say about their server, by names of series.Tally: how they ended, whether they are as long as was
    asked, whether the provider's count of tokens can be true, and whether they repeat others."""
    flags = records["flags"]
    said, asked = records["output_tokens"].astype(np.int64), records["asked_output_tokens"].astype(np.int64)
    known = said != UNKNOWN
    compared = known & (asked > 0)
    shorter = compared & (said < asked * (1 - LENGTH_BOUND))
    by_provider = known & (flags & LOCAL_TOKENS == 0)
    return {
        "FINISH_STOP": flags & FINISH_STOP != 0,
        "FINISH_LENGTH": flags & FINISH_LENGTH != 0,
        "FINISH_OTHER": flags & FINISH_OTHER != 0,
        "LENGTH_ASKED": compared,
        "SHORTER": shorter,
        "LONGER": compared & (said > asked * (1 + LENGTH_BOUND)),
        "CUT_SHORT": shorter & (flags & FINISH_LENGTH != 0),
        # An event carries at least one token, so fewer tokens than events were not counted but invented.
        "USAGE_UNDER_EVENTS": by_provider & (said < records["token_events"] * (1 - LENGTH_BOUND)),
        "REPLY_COMPARED": flags & REPLY_COMPARED != 0,
        "IDENTICAL_REPLY": flags & IDENTICAL_REPLY != 0,
        "REPEATED_PROMPT": flags & REPEATED_PROMPT != 0,
    }


def _tokens_per_event(records: Records) -> Column:
    """Of streams whose provider counts tokens. One event that holds the complete reply is no stream."""
    events, said = records["token_events"].astype(np.int64), records["output_tokens"]
    has = (records["flags"] & (STREAMED | FRAMED_ONCE) == STREAMED) & (events > 1) & (said != UNKNOWN)
    per_event = said / np.where(has, events, 1) * SCALES["tokens_per_event"]
    return has, np.rint(np.where(has, per_event, 0)).astype(np.int64)


def _pace(records: Records) -> dict[str, Column]:
    """tpot, decode_tps and e2e_tps. A reply that came in one piece or in bursts has no pace."""
    tokens = output_tokens(records)
    _, span = _between(records["first_token_ns"], records["last_token_ns"])
    timed = (records["first_token_ns"] > 0) & (span > 0) & (records["flags"] & FRAMED_ONCE == 0) & ~in_bursts(records)
    paced = timed & (tokens > 1)
    span = np.where(paced, span, 1)
    complete, e2e = _between(records["send_ns"], records["end_ns"])
    complete = complete & (e2e > 0) & (tokens > 0)
    e2e = np.where(complete, e2e, 1)
    steps = np.where(paced, tokens - 1, 1)
    return {
        "tpot_ms": (paced, np.rint(span / steps).astype(np.int64)),
        "decode_tps": (paced, np.rint(steps / span * _TPS).astype(np.int64)),
        "e2e_tps": (complete, np.rint(tokens / e2e * _TPS).astype(np.int64)),
    }


def _begun(records: Records, name: str) -> npt.NDArray[np.uint64]:
    """A start mark's column, 0 where it was not reached. An address needs no lookup: its TCP handshake begins at once."""
    column: npt.NDArray[np.uint64] = records[f"{name}_ns"]
    return np.where(column > 0, column, records["connect_start_ns"]) if name == "dns_done" else column


def _between(begun: npt.NDArray[np.uint64], ended: npt.NDArray[np.uint64]) -> Column:
    return (begun > 0) & (ended > 0), _signed(ended) - _signed(begun)


def _signed(column: npt.NDArray[Any]) -> Values:
    return column.astype(np.int64)


def groups(labels: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    """(label, selection) for each label; a batch of one series is not copied."""
    found = np.unique(labels)
    if len(found) == 1:
        yield int(found[0]), slice(None)
        return
    for label in found:
        yield int(label), labels == label
