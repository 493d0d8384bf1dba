"""The rows of a run against what a capture shows: errors of send, TTFT and every gap.

A request and its reply are found again by the id that the provider gave it, else by time: the captured request nearest
to the row's send mark. Of TLS each event is held against the record nearest in time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from ...collectors.calibration.result import Quantiles
from ...collectors.calibration.truth import Ns, exact_events, quantiles
from ...collectors.snapshot import Reason
from ...engine.errors import LensError
from ...engine.plan.plan import Target
from ...engine.planfile.build import make_plan
from ...engine.planfile.reading import read_document
from ...engine.runs.rundir import PLAN
from ...engine.wire.endpoint import Endpoint
from ...exporters.rundir import requests
from .packets import segments
from .replies import Seen, seen_plain, seen_sealed
from .streams import Connection, connections

SCHEMA: Final = 1
NEAR_NS: Final = 20_000_000  # a request leaves this soon after its send mark, else it is another one
CLOCK_NS: Final = 5_000_000  # the median request leaves sooner, else the capture has another clock
UNUSED: Final = "unused"


class Counts(msgspec.Struct, kw_only=True):
    """Of the run's ok requests with token times."""

    compared: int = 0
    not_in_capture: int = 0
    other_events: int = 0  # in the capture, with another number of token events
    not_compared: int = 0  # retried, resent, or across a clock step: their times are of several sends
    censored_events: int = 0  # without a stamp of their own: no exact time to compare


class Verified(msgspec.Struct, kw_only=True):
    """What `lens verify` prints. Errors are absolute, in us: the send mark against the packet, TTFT, and gaps."""

    schema: int = SCHEMA
    run: str
    capture: str
    connections: int
    requests: Counts
    send_error_us: Quantiles
    ttft_error_us: Quantiles
    gap_error_us: Quantiles
    gaps: int
    notes: list[Reason]


class _Place(NamedTuple):
    """A target, and the server that the capture must have."""

    target: Target
    server: tuple[str, int]
    secure: bool


def verify(capture: Path, run_dir: Path) -> Verified:
    """Compares. Raises LensError where there is nothing to compare, with the reason and the way out."""
    places = _places(run_dir)
    rows = _timed(run_dir)
    found = connections(segments(capture), {place.server for place in places})
    notes = _complaints(capture, found, places, rows)
    counts = Counts()
    sends: list[int] = []
    ttfts: list[int] = []
    gaps: list[Ns] = []
    for place in places:
        mine = [row for row in rows if row["target"] == place.target.name]
        seen = [
            each
            for connection in found[place.server]
            for each in (seen_sealed(connection) if place.secure else seen_plain(connection, place.target))
        ]
        for row, captured in _matched(mine, seen, counts):
            sends.append(captured.sent_ns - send_wall_ns(row))
            exact = exact_events(row)
            counts.censored_events += int((~exact).sum())
            times = np.array(row["token_ns"], np.int64)
            truth = np.array(captured.token_ns, np.int64)
            if captured.sealed:
                truth = _nearest(times + send_wall_ns(row), truth)
            if exact[0]:
                ttfts.append(int(times[0] - (truth[0] - captured.sent_ns)))
            both = exact[1:] & exact[:-1]
            gaps.append((np.diff(times) - np.diff(truth))[both])
    if not sends:
        raise LensError(_nothing(capture, found, rows, counts))
    if abs(median(sends)) > CLOCK_NS:
        raise LensError(
            f"in {capture} requests leave {median(sends) / 1e6:+.3f} ms after their send marks: it was captured on another "
            "host, or a clock was set in between; capture on the host that runs lens"
        )
    every_gap = np.concatenate(gaps)
    return Verified(
        run=run_dir.resolve().name,
        capture=str(capture),
        connections=sum(map(len, found.values())),
        requests=counts,
        send_error_us=quantiles(np.array(sends, np.int64)),
        ttft_error_us=quantiles(np.array(ttfts, np.int64)),
        gap_error_us=quantiles(every_gap),
        gaps=len(every_gap),
        notes=notes,
    )


def send_wall_ns(row: Mapping[str, Any]) -> int:
    """The row's send mark, Unix epoch."""
    intended_ns, after_ms = int(row["wall_time_ns"]), float(row["send_ms"])
    return intended_ns + round(after_ms * 1e6)


def _places(run_dir: Path) -> list[_Place]:
    """The run's targets and their servers. Keys, headers and certificates are not needed, and may not be here any more."""
    document, source = read_document(str(run_dir / PLAN))
    targets = [
        {name: value for name, value in target.items() if name not in ("headers", "ca_file", "proxy", "price")}
        | {"api_key": UNUSED, "verify_tls": False}
        | ({"proxy": ""} if target.get("proxy") == "" else {})
        for target in document["targets"]
    ]
    if any(target.get("proxy") for target in document["targets"]):
        raise LensError(f"{run_dir} went through a proxy: what the capture shows is the way to the proxy")
    plan = make_plan({"targets": targets, "requests": 1}, source, os.environ)
    places = []
    for target in plan.targets:
        endpoint = Endpoint(target, {})
        address = str(endpoint.addresses[0].sockaddr[0]) if endpoint.addresses else ""
        places.append(_Place(target, (address, endpoint.next_port), endpoint.tls_context is not None))
    return places


def _timed(run_dir: Path) -> list[dict[str, Any]]:
    """The rows that have token times. Raises LensError if there are none."""
    rows = [row for row in requests(run_dir) if row.get("token_ns") and row["outcome"] == "ok"]
    if not rows:
        raise LensError(
            f"{run_dir} has no token times: run it again with output: {{token_times: all}} in the plan "
            "(a run without an ok request has none either)"
        )
    return rows


def _complaints(
    capture: Path,
    found: Mapping[tuple[str, int], list[Connection]],
    places: Iterable[_Place],
    rows: list[dict[str, Any]],
) -> list[Reason]:
    """What limits the comparison. Raises LensError for what makes it impossible."""
    notes: list[Reason] = []
    every = [connection for each in found.values() for connection in each]
    names = " and ".join(sorted(f"{place.server[0] or '*'}:{place.server[1]}" for place in places))
    if not every:
        raise LensError(
            f"{capture} has no connection of the run (to {names}): capture on the interface that leads there (lo for a "
            "server on this host), from before the run's start on"
        )
    cut = sum(connection.cut for connection in every)
    if cut:
        raise LensError(
            f"{capture} lacks {cut} bytes of the packets: it was recorded with a short snap length; use tcpdump -s 0"
        )
    holes = sum(connection.request.incomplete or connection.reply.incomplete for connection in every)
    if holes:
        notes.append(
            Reason(
                "packets_missing",
                f"{holes} of {len(every)} connections have holes: the capture lost packets (tcpdump -B)",
                True,
            )
        )
    if any(place.secure for place in places):
        notes.append(
            Reason("sealed", "of TLS only record ends are known: each event is held against the nearest one", True)
        )
    return notes


def _matched(rows: list[dict[str, Any]], seen: list[Seen], counts: Counts) -> Iterable[tuple[dict[str, Any], Seen]]:
    """Each row with what the capture shows of it."""
    by_id = {each.request_id: each for each in seen if each.request_id}
    by_time = sorted((each for each in seen if not each.request_id), key=lambda each: each.sent_ns)
    taken = np.zeros(len(by_time), bool)
    moments = np.array([each.sent_ns for each in by_time], np.int64)
    for row in sorted(rows, key=send_wall_ns):
        if row["attempts"] != 1 or row["stale_resent"] or row["clock_stepped"]:
            counts.not_compared += 1
            continue
        captured = by_id.pop(row["request_id"], None) if row["request_id"] else None
        if captured is None and len(by_time) and not np.all(taken):
            away = np.where(taken, np.iinfo(np.int64).max, np.abs(moments - send_wall_ns(row)))
            nearest = int(np.argmin(away))
            if away[nearest] <= NEAR_NS:
                taken[nearest] = True
                captured = by_time[nearest]
        if captured is None:
            counts.not_in_capture += 1
        elif not captured.token_ns or (not captured.sealed and len(captured.token_ns) != len(row["token_ns"])):
            counts.other_events += 1
        else:
            counts.compared += 1
            yield row, captured


def _nearest(times: Ns, candidates: Ns) -> Ns:
    """For each time the candidate nearest to it; `candidates` ascend."""
    behind = np.clip(np.searchsorted(candidates, times), 1, max(1, len(candidates) - 1))
    low, high = candidates[behind - 1], candidates[np.minimum(behind, len(candidates) - 1)]
    return np.where(times - low <= high - times, low, high)


def _nothing(
    capture: Path,
    found: Mapping[tuple[str, int], list[Connection]],
    rows: list[dict[str, Any]],
    counts: Counts,
) -> str:
    """Why nothing of the run is in the capture."""
    moments = [moment for each in found.values() for connection in each for moment in connection.request.times_ns[:1]]
    sends = [send_wall_ns(row) for row in rows]
    if moments and (min(moments) > max(sends) + 10**9 or max(moments) < min(sends) - 10**9):
        apart = (min(moments) - min(sends)) / 1e9
        return (
            f"{capture} begins {apart:+.1f} s from the run: it is of another run, or of a host whose clock differs; capture "
            "this run on the host that runs lens"
        )
    return (
        f"none of {len(rows)} requests can be compared with {capture}: {counts.not_in_capture} are not in it, "
        f"{counts.other_events} have other events there, {counts.not_compared} were sent more than once; capture from "
        "before the run's start on, with every packet (tcpdump -B 65536)"
    )
