"""One run compared with the log of the simulator that served it, event by event. Sans-IO, all times int ns.

The server reads CLOCK_MONOTONIC right before and right after each send(), on the same host as the client: the kernel
stamped the segment between the two. Where they are far apart the server lost its CPU in between and nobody knows when
the event left; such events are discarded and counted.

A read's stamp belongs to its last byte. The last event of a read is therefore exact; the others of the read are
censored: they arrived after the read before and not after this one. So is a last token that shared its read with the
end of the reply, and a first token that the worker marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from .result import Quantiles

DESCHEDULED_NS: Final = (
    250_000  # between the server's two stamps: more than a send() over loopback takes, also on an idle core
)
P99_9_MIN: Final = 1000  # values that a p99.9 needs, to be anything but the maximum

Ns = npt.NDArray[np.int64]


class Served(msgspec.Struct, frozen=True):
    """What a line of the simulator's log says of one request, as far as it is compared."""

    id: str
    arrival_ns: int
    clock: str
    first_token_sent_ns: int | None = None
    token_sent_ns: list[int] | None = None
    token_done_ns: list[int] | None = None
    max_lateness_ns: int = 0  # of its writes behind the server's own schedule


class Errors(NamedTuple):
    """Client minus truth in ns: stamps of exact events, TTFT, gaps between exact events, the way of the request from the
    send mark to the server's kernel; and how late the client sent. The counts are of events."""

    arrival: Ns
    ttft: Ns
    itl: Ns
    send_to_wire: Ns
    lateness: Ns
    ttft_pairs: tuple[Ns, Ns]  # client's and server's, of the same requests
    events: int
    censored: int
    censored_known: int  # of them, whose true time is known
    censored_inside: int  # of those, whose true time lies within the bounds
    discarded: int
    unmatched: int  # requests that one side has and the other does not

    @property
    def coalesced_share(self) -> float | None:
        return self.censored / self.events if self.events else None

    @property
    def censored_inside_share(self) -> float | None:
        return self.censored_inside / self.censored_known if self.censored_known else None

    @property
    def discarded_share(self) -> float | None:
        return self.discarded / self.events if self.events else None


class _Request(NamedTuple):
    arrival: Ns
    itl: Ns
    ttft: tuple[int, int] | None
    send_to_wire: int | None
    counts: tuple[int, int, int, int, int]  # as the last of `Errors`


def errors_of(
    rows: Iterable[Mapping[str, Any]], served: Mapping[str, Served], *, wall_offset_ns: int, phase: str
) -> Errors:
    """Compares the ok requests of a phase (rows of requests.msgpack with `token_ns`) with the server's log by request id.

    `wall_offset_ns` is CLOCK_REALTIME minus CLOCK_MONOTONIC, as the run's rows have it.
    """
    found: list[_Request] = []
    lateness: list[float] = []
    unmatched = 0
    for row in rows:
        if row["phase"] != phase or row["outcome"] != "ok":
            continue
        if row["client_lateness_ms"] is not None:
            lateness.append(row["client_lateness_ms"])
        # The reply's own id is the server's with a prefix: chatcmpl-ID.
        truth = served.get((row["request_id"] or "").rpartition("-")[2])
        times = row["token_ns"]
        if truth is None or times is None or truth.token_sent_ns is None or len(times) != len(truth.token_sent_ns):
            unmatched += 1
        else:
            found.append(_compared(row, truth, wall_offset_ns))
    pairs = np.array([each.ttft for each in found if each.ttft is not None], np.int64).reshape(-1, 2)
    sends = [each.send_to_wire for each in found if each.send_to_wire is not None]
    totals = np.array([each.counts for each in found], np.int64).reshape(-1, 5).sum(axis=0).tolist()
    return Errors(
        _joined([each.arrival for each in found]),
        pairs[:, 0] - pairs[:, 1],
        _joined([each.itl for each in found]),
        np.array(sends, np.int64),
        np.rint(np.array(lateness) * 1e6).astype(np.int64),
        (pairs[:, 0], pairs[:, 1]),
        events=totals[0],
        censored=totals[1],
        censored_known=totals[2],
        censored_inside=totals[3],
        discarded=totals[4],
        unmatched=unmatched,
    )


def _compared(row: Mapping[str, Any], truth: Served, wall_offset_ns: int) -> _Request:
    send = row["wall_time_ns"] - wall_offset_ns + round(row["send_ms"] * 1e6)
    stamps = np.array(row["token_ns"], np.int64) + send
    sent = np.array(truth.token_sent_ns, np.int64)
    done = np.array(truth.token_done_ns, np.int64)
    shares = np.array(row["token_coalesced"], bool)
    exact = exact_events(row)
    known = done - sent <= DESCHEDULED_NS
    before = _stamp_before(stamps, shares, send)
    censored = ~exact & known
    certain = exact & known
    gaps = np.diff(stamps[exact]) - np.diff(sent[exact])
    both_known = known[exact][1:] & known[exact][:-1]
    ttft = None
    if certain[0] and truth.first_token_sent_ns is not None and truth.clock == "kernel":
        ttft = row["token_ns"][0], truth.first_token_sent_ns - truth.arrival_ns
    return _Request(
        arrival=(stamps - sent)[certain],
        itl=gaps[both_known],
        ttft=ttft,
        send_to_wire=truth.arrival_ns - send if truth.clock == "kernel" else None,
        counts=(
            len(stamps),
            int((~exact).sum()),
            int(censored.sum()),
            int(((done > before) & (sent <= stamps))[censored].sum()),
            int((~known).sum()),
        ),
    )


def exact_events(row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which token events of a row have a stamp of their own; the others are censored."""
    shares = np.array(row["token_coalesced"], bool)  # with the event before it; of the first: with later ones
    exact = np.append(~shares[1:], True)
    exact[0] &= not shares[0]
    exact[-1] &= row["end_ms"] != row["last_token_ms"]
    return exact


def _stamp_before(stamps: Ns, shares: npt.NDArray[np.bool_], send: int) -> Ns:
    """For each event the stamp of the read before its own."""
    begins = ~shares
    begins[0] = True
    previous = np.append(np.int64(send), stamps[:-1])
    return previous[np.maximum.accumulate(np.where(begins, np.arange(len(stamps)), 0))]


def _joined(arrays: list[Ns]) -> Ns:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


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
