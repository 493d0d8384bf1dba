"""What `lens calibrate` compares: a real run against the simulator's own log, and the arithmetic of censored events."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from llm_latency_lens.cli.calibrate.conditions import Conditions
from llm_latency_lens.cli.calibrate.measure import measure
from llm_latency_lens.collectors.calibration.truth import DESCHEDULED_NS, Served, errors_in, errors_of

FIRST_CORE = min(os.sched_getaffinity(0))
MS = 1_000_000


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(10, 200.0, 0.5, client_stalls=True),
        Conditions(10, 200.0, 0.5, transport="tls", mode="split"),
        Conditions(10, 200.0, 0.5, mode="coalesced"),
    ],
    ids=["stalled", "tls-split", "coalesced"],
)
@pytest.mark.slow
def test_every_event_of_a_real_run_is_found_in_the_servers_log(conditions: Conditions) -> None:
    """An event that is compared with another one's truth makes an error of a whole gap: none may be near that."""
    measured = measure(conditions, seconds=1.0, core=FIRST_CORE)
    errors = measured.errors
    assert errors.unmatched == 0
    assert errors.events == sum(measured.report.metrics[name].count for name in ("ttft_ms",)) * conditions.tokens
    assert errors.censored_inside_share in (None, 1.0)
    assert 0 <= np.median(errors.arrival) < 5 * MS
    assert np.median(np.abs(errors.itl)) < 5 * MS
    assert (errors.coalesced_share or 0) >= (0.5 if conditions.mode == "coalesced" else 0)


def test_reads_that_are_not_segment_by_segment_keep_the_truth_within_their_bounds() -> None:
    """Without packet sockets a stalled worker's events share reads: censored, and the truth is inside, always."""
    measured = measure(Conditions(10, 1000.0, 0.3, client_stalls=True), seconds=0.8, core=FIRST_CORE, stamps="read")
    assert measured.report.client.stamps == "read"
    assert measured.errors.censored > 0
    assert measured.errors.censored_inside_share == 1.0


def row(token_ns: list[int], coalesced: list[bool], **others: Any) -> dict[str, Any]:
    """A row of requests.msgpack as the collector writes it, of a request sent at 1 ms."""
    last_ms = 1.0 + token_ns[-1] / MS
    known = {"phase": "measured", "outcome": "ok", "request_id": "chatcmpl-a", "wall_time_ns": 0, "send_ms": 1.0}
    ends = {"last_token_ms": last_ms, "end_ms": last_ms + 0.1, "client_lateness_ms": 0.5}
    return known | ends | {"token_ns": token_ns, "token_coalesced": coalesced} | others


def served(sent_ns: list[int], taking_ns: int = 20_000) -> dict[str, Served]:
    """The server's log of that request, which arrived 3 us after its send mark."""
    times = [each + MS for each in sent_ns]
    done = [each + taking_ns for each in times]
    return {"a": Served("a", MS + 3_000, "kernel", times[0], times, done)}


def test_an_exact_events_error_is_its_stamp_minus_the_send() -> None:
    """The basic arithmetic, with the request's own way to the server in TTFT."""
    errors = errors_of(
        [row([10_000_007, 20_000_009], [False, False])],
        served([10_000_000, 20_000_000]),
        wall_offset_ns=0,
        phase="measured",
    )
    assert errors.arrival.tolist() == [7, 9]
    assert errors.itl.tolist() == [2]
    assert errors.ttft.tolist() == [3_007]
    assert errors.send_to_wire.tolist() == [3_000]
    assert errors.lateness.tolist() == [500_000]


@pytest.mark.parametrize(("second_ns", "inside"), [(15_000_000, 1.0), (31_000_000, 0.5), (9_000_000, 0.5)])
def test_a_censored_event_is_inside_only_between_its_reads(second_ns: int, inside: float) -> None:
    """Events 2 and 3 shared a read with 4 at 30 ms, and the read before was at 10 ms."""
    shared = row([10_000_000, 30_000_000, 30_000_000, 30_000_000], [False, False, True, True])
    truth = served([9_990_000, second_ns, 20_000_000, 29_990_000])
    errors = errors_of([shared], truth, wall_offset_ns=0, phase="measured")
    assert errors.censored == 2
    assert errors.censored_inside_share == inside
    assert errors.arrival.tolist() == [10_000, 10_000]


def test_an_event_whose_send_took_long_is_discarded_and_counted() -> None:
    """The server lost its core between its two stamps: when the bytes left is not known, so it is no truth."""
    rows = [row([10_000_000, 20_000_000], [False, False])]
    errors = errors_of(rows, served([9_000_000, 19_000_000], DESCHEDULED_NS + 1), wall_offset_ns=0, phase="measured")
    assert (len(errors.arrival), errors.discarded_share) == (0, 1.0)
    assert errors_in(errors)["arrival_error_us"].p99 is None


def test_a_last_token_that_came_with_the_end_of_the_reply_is_censored() -> None:
    """Its stamp is that of the bytes behind it."""
    together = row([10_000_000, 20_000_000], [False, False], end_ms=21.0, last_token_ms=21.0)
    errors = errors_of([together], served([9_990_000, 15_000_000]), wall_offset_ns=0, phase="measured")
    assert (errors.censored, errors.censored_inside_share) == (1, 1.0)
    assert errors.arrival.tolist() == [10_000]


def test_a_request_that_only_one_side_knows_is_counted() -> None:
    """Left out silently, a mismatch of ids would compare nothing and look perfect."""
    errors = errors_of([row([1], [False], request_id="chatcmpl-b")], served([1]), wall_offset_ns=0, phase="measured")
    assert (errors.unmatched, errors.events) == (1, 0)
