"""The result of `lens calibrate`: what is printed with --json and kept in the file of the host."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from ..snapshot import Reason

SCHEMA: Final = 1

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
