"""The result of `lens calibrate`: what is printed with --json and kept in the file of the host."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import numpy as np

from ..snapshot import Reason
from .truth import Errors, Ns

SCHEMA: Final = 1
P99_9_MIN: Final = 1000  # values that a p99.9 needs, to be anything but the maximum

Transport = Literal["tcp", "tls"]
Mode = Literal["steady", "burst", "heavy_tail", "coalesced", "split"]


class Quantiles(msgspec.Struct, kw_only=True):
    """Of absolute values, us; None where there is none, or too few for it."""

    p50: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None


class Point(msgspec.Struct, kw_only=True):
    """What was measured under one set of conditions, with one worker. `events_per_s` is what was reached."""

    streams: int
    events_per_s: float
    transport: Transport
    mode: Mode
    client_stalls: bool
    arrival_error_us: Quantiles
    ttft_error_us: Quantiles
    itl_error_us: Quantiles
    send_to_wire_us: Quantiles
    lateness_us: Quantiles
    cpu_us_per_event: float | None
    coalesced_share: float | None
    censored_inside_share: float | None
    discarded_share: float | None
    stamps: str  # segment | read | mixed, as in summary.json
    events: int  # that were compared


class Ceiling(msgspec.Struct, kw_only=True):
    """The highest load of one worker at which the promises hold; None where it could not be found out (see notes)."""

    events_per_s_per_worker: float | None = None
    requests_per_s_per_worker: float | None = None
    streams_per_worker: int | None = None


class Calibration(msgspec.Struct, kw_only=True):
    schema: int = SCHEMA
    host_hash: str
    host: dict[str, Any]
    version: str
    at: str  # ISO 8601, UTC: when it began
    quick: bool
    points: list[Point]
    ceiling: Ceiling
    notes: list[Reason]  # what could not be known, and what disturbed it


def quantiles(errors_ns: Ns) -> Quantiles:
    """p50, p99, p99.9 and maximum of the absolute values, in us."""
    if not len(errors_ns):
        return Quantiles()
    p50, p99, p99_9, most = (float(each) / 1000 for each in np.percentile(np.abs(errors_ns), [50, 99, 99.9, 100]))
    return Quantiles(p50=p50, p99=p99, p99_9=p99_9 if len(errors_ns) >= P99_9_MIN else None, max=most)


def errors_in(errors: Errors) -> dict[str, Any]:
    """The fields of a `Point` that a comparison with the server's log makes."""
    return {
        "arrival_error_us": quantiles(errors.arrival),
        "ttft_error_us": quantiles(errors.ttft),
        "itl_error_us": quantiles(errors.itl),
        "send_to_wire_us": quantiles(errors.send_to_wire),
        "lateness_us": quantiles(errors.lateness),
        "coalesced_share": errors.coalesced_share,
        "censored_inside_share": errors.censored_inside_share,
        "discarded_share": errors.discarded_share,
        "events": errors.events,
    }


def points_off_us(errors: Errors) -> float | None:
    """By how much p50, p95 or p99 of TTFT differ from the server's own, at most, in us; None with no request compared."""
    mine, true = errors.ttft_pairs
    if not len(mine):
        return None
    points = [50, 95, 99]
    return float(np.abs(np.percentile(mine, points) - np.percentile(true, points)).max()) / 1000
