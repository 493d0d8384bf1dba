"""The calibration of a host as a file: where it is, what of it a run quotes, and whether a plan asks for more than it found.

Raises nothing for a file that cannot be used: a run does not depend on it. `Loaded.ignored` says why it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ...engine.errors import OutputError
from ...engine.files import UNDECODABLE, replace
from ...engine.plan.plan import Load, Plan
from ..snapshot import ENCODER, Report
from .result import SCHEMA, Calibration, Point

STATE_HOME: Final = "XDG_STATE_HOME"
AGAIN: Final = "run `lens calibrate` again"
_DECODER: Final = msgspec.json.Decoder(Calibration)


class _Head(msgspec.Struct):
    """What every version can read."""

    schema: int
    version: str


class Loaded(NamedTuple):
    """`calibration` is None where there is none, or none that can be used; `ignored` then says why, empty for no file."""

    calibration: Calibration | None = None
    ignored: str = ""


def path_of(host_hash: str, environ: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME/llm-latency-lens/calibration/<host_hash>.json. A path that is not absolute does not count (XDG
    Base Directory Specification)."""
    given = environ.get(STATE_HOME, "")
    home = Path(environ.get("HOME") or "~").expanduser()
    root = Path(given) if given.startswith("/") else home / ".local" / "state"
    return root / "llm-latency-lens" / "calibration" / f"{host_hash}.json"


def store(calibration: Calibration, environ: Mapping[str, str]) -> Path:
    """Writes the file in one step; returns its path. Raises OutputError."""
    path = path_of(calibration.host_hash, environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, ENCODER.encode(calibration) + b"\n")
    except OSError as error:
        raise OutputError(
            f"the calibration cannot be written to {path}: {error.strerror}; name another place with {STATE_HOME}"
        ) from None
    return path


def load(host_hash: str, version: str, environ: Mapping[str, str]) -> Loaded:
    """The calibration of this host by this version."""
    path = path_of(host_hash, environ)
    try:
        content = path.read_bytes()
        head = msgspec.json.decode(content, type=_Head)
        if head.version != version or head.schema != SCHEMA:
            return Loaded(ignored=f"{path} is by version {head.version}, this is {version}: ignored; {AGAIN}")
        calibration = _DECODER.decode(content)
    except FileNotFoundError:
        return Loaded()
    except UNDECODABLE as error:
        return Loaded(ignored=f"{path} is damaged and ignored ({error}); {AGAIN}")
    except OSError as error:
        return Loaded(ignored=f"{path} cannot be read and is ignored: {error.strerror}")
    if calibration.host_hash != host_hash:
        return Loaded(ignored=f"{path} is of host {calibration.host_hash} and ignored; {AGAIN}")
    return Loaded(calibration)


def quoted(calibration: Calibration, report: Report, *, transport: str, stalled: bool) -> dict[str, Any] | None:
    """What a run says of its own accuracy: the point nearest to what one of its workers did, and when it was measured."""
    e2e, throughput, workers = report.metrics.get("e2e_ms"), report.throughput, max(1, report.client.workers)
    if e2e is None or e2e.mean is None or not throughput.requests_per_s or not throughput.events_per_s:
        return None
    streams = throughput.requests_per_s * e2e.mean / 1000 / workers  # in flight on average (Little's law)
    point = nearest(
        calibration.points,
        streams=streams,
        events_per_s=throughput.events_per_s / workers,
        transport=transport,
        stalled=stalled,
    )
    return None if point is None else {"at": calibration.at} | msgspec.to_builtins(point)


def nearest(points: list[Point], *, streams: float, events_per_s: float, transport: str, stalled: bool) -> Point | None:
    """The point of most similar load, by the ratios of streams and events; first of the same transport and stalls."""

    def distance(point: Point) -> tuple[bool, bool, bool, float]:
        ratios = (max(1.0, streams) / max(1, point.streams), max(1.0, events_per_s) / max(1.0, point.events_per_s))
        far = sum(abs(math.log(ratio)) for ratio in ratios)
        return point.transport != transport, point.client_stalls != stalled, point.mode != "steady", far

    return min((point for point in points if point.events), key=distance, default=None)


def excess(plan: Plan, workers: int, calibration: Calibration) -> str:
    """In what the plan asks more of a worker than the calibration found possible, in words; empty if in nothing."""
    ceiling, found = calibration.ceiling, []
    streams = max((_most(phase.load, "closed") for phase in plan.phases), default=0.0) / workers
    if ceiling.streams_per_worker is not None and streams > ceiling.streams_per_worker:
        found.append(f"{streams:.0f} streams at a time, {ceiling.streams_per_worker} are calibrated")
    rate = max((_most(phase.load, "open") for phase in plan.phases), default=0.0) / workers
    if ceiling.requests_per_s_per_worker is not None and rate > ceiling.requests_per_s_per_worker:
        found.append(f"{rate:.0f} requests/s, {ceiling.requests_per_s_per_worker:.0f} are calibrated")
    length = plan.workload.output_tokens
    events = rate * length.mean if length is not None else 0.0
    if ceiling.events_per_s_per_worker is not None and events > ceiling.events_per_s_per_worker:
        found.append(f"{events:.0f} events/s, {ceiling.events_per_s_per_worker:.0f} are calibrated")
    if not found:
        return ""
    return (
        f"the plan asks {'; '.join(found)} of each of {workers} worker{'s' * (workers > 1)} ({calibration.at}); "
        "more workers, more cores or a lower load keep the numbers exact"
    )


def _most(load: Load, model: str) -> float:
    return max(max(shape.start, shape.end) for shape in load.shapes) if load.model == model and load.shapes else 0.0
