"""What METRICS defines per request, computed for a batch of records at once. Pure: records in, columns out.

A column is (has, value): which records have the metric, and its value in histogram units (snapshot.SCALES), arbitrary
where `has` is false. A mark that was never reached gives no sample. Which outcomes may enter which distribution is
collectors.series' business.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engine.records.record import FRAMED_ONCE, REUSED, UNKNOWN
from .snapshot import SCALES

Records = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]
Values = npt.NDArray[np.int64]
Column = tuple[Flags, Values]

# metric, from mark, to mark
_INTERVALS: Final = (
    ("ttft_ms", "send_ns", "first_token_ns"),
    ("ttft_scheduled_ms", "intended_ns", "first_token_ns"),
    ("ttfo_ms", "send_ns", "first_output_ns"),
    ("ttfb_ms", "send_ns", "headers_ns"),
    ("e2e_ms", "send_ns", "end_ns"),
    ("e2e_scheduled_ms", "intended_ns", "end_ns"),
    ("lateness_ms", "intended_ns", "send_ns"),
)
_PHASES: Final = (("dns_ms", "connect_start_ns", "dns_done_ns"), ("tls_ms", "tcp_done_ns", "tls_done_ns"))
_TPS: Final = 1e9 * SCALES["decode_tps"]


def measures(records: Records) -> dict[str, Column]:
    """Every metric of METRICS but the pooled `itl_ms` and `cost_usd`, which needs a price (collectors.cost)."""
    columns = {name: _interval(records, start, end) for name, start, end in _INTERVALS}
    columns |= _connection(records)
    columns |= _pace(records)
    columns["itl_max_ms"] = (records["itl_max_ns"] > 0, _signed(records["itl_max_ns"]))
    return columns


def output_tokens(records: Records) -> Values:
    """Output tokens by the provider's usage (or the local tokenizer); where neither says, the token events."""
    said = records["output_tokens"]
    return np.where(said != UNKNOWN, said, records["token_events"]).astype(np.int64)


def _connection(records: Records) -> dict[str, Column]:
    """dns, tcp and tls of the requests that opened their connection. Without a lookup, tcp starts with the connect."""
    opened = (records["flags"] & REUSED) == 0
    columns = {}
    for name, start, end in _PHASES:
        has, value = _interval(records, start, end)
        columns[name] = (has & opened, value)
    began = np.where(records["dns_done_ns"] > 0, records["dns_done_ns"], records["connect_start_ns"])
    has = opened & (began > 0) & (records["tcp_done_ns"] > 0)
    columns["tcp_ms"] = (has, _signed(records["tcp_done_ns"]) - _signed(began))
    return columns


def _pace(records: Records) -> dict[str, Column]:
    """tpot, decode_tps and e2e_tps. A reply that came in one piece has no pace: its two token marks are one stamp."""
    tokens = output_tokens(records)
    _, span = _interval(records, "first_token_ns", "last_token_ns")
    timed = (records["first_token_ns"] > 0) & (span > 0) & (records["flags"] & FRAMED_ONCE == 0)
    paced = timed & (tokens > 1)
    span = np.where(paced, span, 1)
    whole, e2e = _interval(records, "send_ns", "end_ns")
    whole = whole & (e2e > 0) & (tokens > 0)
    e2e = np.where(whole, e2e, 1)
    steps = np.where(paced, tokens - 1, 1)
    return {
        "tpot_ms": (paced, np.rint(span / steps).astype(np.int64)),
        "decode_tps": (paced, np.rint(steps / span * _TPS).astype(np.int64)),
        "e2e_tps": (whole, np.rint(tokens / e2e * _TPS).astype(np.int64)),
    }


def _interval(records: Records, start: str, end: str) -> Column:
    begun, ended = records[start], records[end]
    return (begun > 0) & (ended > 0), _signed(ended) - _signed(begun)


def _signed(column: npt.NDArray[Any]) -> Values:
    return column.astype(np.int64)
