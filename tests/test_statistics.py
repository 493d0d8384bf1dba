"""METRICS' definitions on scripted requests: which mark makes which sample, what is counted where, what is not reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.cost import Prices
from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.measures import measures
from llm_latency_lens.collectors.series import NOBODY, Series, Slab, Tally
from llm_latency_lens.collectors.statistics import (
    P99_9_NEEDS,
    buckets,
    cost,
    distribution,
    distributions,
    native_buckets,
    requests,
    throughput,
    tokens,
    window_ns,
)
from llm_latency_lens.engine.metrics import METRICS, NATIVE_SCHEMA, SCALES
from llm_latency_lens.engine.plan.price import price
from llm_latency_lens.engine.records import record as r
from llm_latency_lens.engine.records.record import GAP_COALESCED, GAP_USER_CLOCK, NO_TARGET, UNKNOWN, Outcome, Unsent
from llm_latency_lens.engine.runs.manifest import PhaseTimes
from tests.support_collector import MS, SECOND, START, fields, plan, records, series, slab, unsent

NOTHING = dict.fromkeys(("connect_start_ns", "dns_done_ns", "tcp_done_ns", "tls_done_ns"), 0)
OPENED = {
    "flags": 0,
    "connect_start_ns": START - 9 * MS,
    "dns_done_ns": START - 7 * MS,
    "tcp_done_ns": START - 4 * MS,
    "tls_done_ns": START - MS,
}

# metric, its value for the usual request of support_collector.fields
USUAL = [
    ("ttft_ms", 20.0),
    ("ttft_scheduled_ms", 21.0),
    ("ttfo_ms", 20.0),
    ("ttfb_ms", 10.0),
    ("e2e_ms", 130.0),
    ("e2e_scheduled_ms", 131.0),
    ("tpot_ms", 10.0),
    ("itl_max_ms", 10.0),
    ("decode_tps", 100.0),
    ("e2e_tps", 11 / 0.130),
    ("lateness_ms", 1.0),
    ("client_lateness_ms", 1.0),
]

# why, the fields that differ, the metrics that then have no sample
ABSENT = [
    ("no token ever came", {"first_token_ns": 0}, {"ttft_ms", "ttft_scheduled_ms", "tpot_ms", "decode_tps"}),
    ("reasoning only, nothing visible", {"first_output_ns": 0}, {"ttfo_ms"}),
    ("one token has no pace", {"output_tokens": 1}, {"tpot_ms", "decode_tps"}),
    ("one token event has no gap", {"itl_max_ns": 0}, {"itl_max_ms"}),
    ("a whole reply in one piece has no pace", {"flags": r.REUSED | r.FRAMED_ONCE}, {"tpot_ms", "decode_tps"}),
    ("all tokens in one read have no pace", {"last_token_ns": START + 21 * MS}, {"tpot_ms", "decode_tps"}),
    (
        "a reused connection has no phases",
        {"flags": r.REUSED, **{k: v for k, v in OPENED.items() if k != "flags"}},
        set(),
    ),
    ("no tokens at all", {"output_tokens": 0, "token_events": 0}, {"tpot_ms", "decode_tps", "e2e_tps"}),
]


def values(row: dict[str, int]) -> dict[str, float]:
    return {name: value[0] / SCALES[name] for name, (has, value) in measures(records(row)).items() if has[0]}


@pytest.mark.parametrize(("metric", "expected"), USUAL)
def test_each_metric_is_the_interval_that_metrics_defines(metric: str, expected: float) -> None:
    assert values(fields())[metric] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("why", "given_fields", "absent"), ABSENT, ids=[row[0] for row in ABSENT])
def test_a_mark_that_was_not_reached_gives_no_sample(why: str, given_fields: dict[str, Any], absent: set[str]) -> None:
    assert {name for name, _ in USUAL} - set(values(fields(**given_fields))) == absent
    assert not {"dns_ms", "tcp_ms", "tls_ms"} & set(values(fields(**given_fields)))


def test_what_a_request_waited_for_is_no_lateness_of_the_client() -> None:
    """`waited_ns` is the connection's, the cap's or the limits' part of the lateness."""
    late = values(fields(send_ns=START + 9 * MS, waited_ns=7 * MS))
    assert (late["lateness_ms"], late["client_lateness_ms"]) == (9.0, 2.0)


def test_connection_phases_are_of_the_request_that_opened_it() -> None:
    reported = values(fields(**OPENED))
    assert (reported["dns_ms"], reported["tcp_ms"], reported["tls_ms"]) == (2.0, 3.0, 3.0)


def test_without_a_name_to_look_up_tcp_starts_with_the_connect() -> None:
    reported = values(fields(**OPENED | {"dns_done_ns": 0, "tls_done_ns": 0}))
    assert reported["tcp_ms"] == 5.0
    assert not {"dns_ms", "tls_ms"} & set(reported)


def test_output_tokens_fall_back_to_events_and_say_so() -> None:
    made = series(fields(output_tokens=UNKNOWN, token_events=6))
    assert (tokens(made).output, tokens(made).source) == (6, "events")
    assert values(fields(output_tokens=UNKNOWN, token_events=6))["tpot_ms"] == 20.0


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ([fields()], "provider"),
        ([fields(flags=r.LOCAL_TOKENS)], "local"),
        ([fields(), fields(output_tokens=UNKNOWN)], "mixed"),
        ([fields(output_tokens=UNKNOWN, token_events=0)], None),
    ],
)
def test_the_source_of_the_token_counts_is_named(rows: list[dict[str, int]], source: str | None) -> None:
    assert tokens(series(*rows)).source == source


def test_a_count_that_nobody_told_is_absent_not_zero() -> None:
    reported = tokens(series(fields(input_tokens=UNKNOWN)))
    assert (reported.input, reported.cached, reported.reasoning) == (None, None, None)
    assert tokens(series(fields(cached_tokens=0))).cached == 0


def test_only_ok_requests_enter_the_latencies_and_failures_have_their_own() -> None:
    made = series(fields(), fields(outcome=Outcome.HTTP_SERVER), fields(outcome=Outcome.CANCELLED))
    assert made.metrics["ttft_ms"].count == 1
    assert made.metrics["lateness_ms"].count == 3
    assert {outcome: h.count for outcome, h in made.failures.items()} == {Outcome.HTTP_SERVER: 1}
    reported = requests(made)
    assert (reported.sent, reported.ok, reported.failed, reported.cancelled) == (3, 1, {"http_server": 1}, 1)


def test_a_clock_step_keeps_a_request_out_of_the_latencies_and_counts_it() -> None:
    made = series(fields(flags=r.CLOCK_STEPPED), fields())
    assert made.metrics["e2e_ms"].count == 1
    assert made.tally[Tally.STEPPED] == 1
    assert requests(made).ok == 2


def test_every_slot_is_accounted_for() -> None:
    rows = [fields(outcome=outcome) for outcome in Outcome if outcome] + [unsent(Unsent.BUDGET, slots=7)]
    reported = requests(series(*rows, unsent(Unsent.WORKER_DOWN)))
    assert reported.planned == reported.sent + sum(reported.unsent.values()) == len(Outcome) - 1 + 8
    assert reported.sent == reported.ok + sum(reported.failed.values()) + reported.cancelled + reported.in_flight_at_end
    assert reported.unsent == {"budget": 7, "worker_down": 1}


def test_what_a_full_ring_dropped_still_reconciles_by_outcome() -> None:
    made, table = Slab(), np.zeros((2, r.OUTCOMES), np.int64)
    table[1, Outcome.OK], table[1, Outcome.UNSENT] = 5, 2
    Reader(2).drops(made, table)
    reported = requests(made.series[0, 1])
    assert (reported.ok, reported.unsent, reported.planned) == (5, {"unrecorded": 2}, 7)
    assert made.series[0, 1].tally[Tally.DROPPED] == 7


def test_a_slot_without_a_target_is_its_only_ones_or_nobodys() -> None:
    assert list(slab(unsent(Unsent.STOPPED, target=NO_TARGET)).series) == [(0, 0)]
    assert list(slab(unsent(Unsent.STOPPED, target=NO_TARGET), targets=2).series) == [(0, NOBODY)]


def test_records_go_to_their_phase_and_target() -> None:
    made = slab(fields(), fields(target=1), fields(phase=1, target=1), targets=2)
    assert {key: s.sent for key, s in made.series.items()} == {(0, 0): 1, (0, 1): 1, (1, 1): 1}


def test_coalesced_gaps_are_counted_and_kept_out_of_the_exact_histogram() -> None:
    words = np.array([10 * MS, 20 * MS, (5 * MS) | GAP_COALESCED, (7 * MS) | GAP_USER_CLOCK], np.uint64)
    made = Slab()
    Reader(1).gaps(made, words)
    reported = made.series[0, 0]
    assert (reported.metrics["itl_ms"].count, reported.metrics["itl_ms"].min) == (3, 7 * MS)
    assert [reported.tally[t] for t in (Tally.GAPS, Tally.GAPS_COALESCED)] == [4, 1]


def test_a_reply_in_bursts_has_no_pace_and_is_counted() -> None:
    """Two bursts of 100 tokens 1 ms apart were shown as 200,000 tok/s, beside a TTFT of all replies, without a word."""
    burst = fields(token_events=11, coalesced=6, last_token_ns=START + 22 * MS)
    half = fields(token_events=12, coalesced=6)
    made = series(fields(), burst, half)
    assert made.metrics["ttft_ms"].count == 3
    assert made.metrics["tpot_ms"].count == made.metrics["decode_tps"].count == 2
    assert made.tally[Tally.BURSTS] == 1
    assert made.metrics["decode_tps"].max < 200 * SCALES["decode_tps"]
    assert series(burst, conditions=[("ttft_ms", "<=", 30.0), ("tpot_ms", "<=", 1.0)]).tally[Tally.GOOD] == 1


def test_asked_and_measured_tokens_are_summed_where_both_are_known() -> None:
    """A mean of the known counts over a sum of all that was asked would find a difference that is none."""
    made = series(
        fields(asked_input_tokens=100, input_tokens=622, asked_output_tokens=50, output_tokens=5),
        fields(asked_input_tokens=70, input_tokens=UNKNOWN),
        fields(input_tokens=900),
        fields(asked_input_tokens=70, outcome=Outcome.HTTP_SERVER),
    )
    pairs = (Tally.ASKED_INPUT, Tally.MEASURED_INPUT, Tally.ASKED_OUTPUT, Tally.MEASURED_OUTPUT)
    assert [int(made.tally[position]) for position in pairs] == [100, 622, 50, 5]


GOODPUT = [
    ("all hold", [("ttft_ms", "<=", 20.0), ("tpot_ms", "<=", 10.0)], fields(), True),
    ("one does not", [("ttft_ms", "<=", 20.0), ("tpot_ms", "<", 10.0)], fields(), False),
    ("a failed request is never good", [("ttft_ms", "<=", 99.0)], fields(outcome=Outcome.HTTP_SERVER), False),
    ("no first token is not a fast one", [("ttft_ms", "<=", 99.0)], fields(first_token_ns=0), False),
    ("one token has no pace to fail", [("tpot_ms", "<=", 1.0)], fields(output_tokens=1), True),
    ("tokens that came together neither", [("tpot_ms", "<=", 1.0)], fields(last_token_ns=START + 21 * MS), True),
    (
        "but those of a whole reply have no times",
        [("tpot_ms", "<=", 1.0)],
        fields(first_token_ns=0, last_token_ns=0),
        False,
    ),
]


@pytest.mark.parametrize(("why", "conditions", "row", "good"), GOODPUT, ids=[row[0] for row in GOODPUT])
def test_goodput_counts_requests_that_meet_all_conditions(why: str, conditions: Any, row: Any, good: bool) -> None:
    made = series(row, conditions=conditions)
    assert made.tally[Tally.GOOD] == good
    reported = throughput(made, 2.0, conditions=True)
    assert (reported.goodput_per_s, reported.goodput_share) == (good / 2, float(good))
    assert throughput(made, 2.0, conditions=False).goodput_share is None


def test_p99_9_is_told_only_from_3688_independent_samples_on() -> None:
    histogram = Histogram()
    histogram.record(np.full(P99_9_NEEDS, MS, np.int64))
    assert distribution(histogram, scale=1e6, n_eff=P99_9_NEEDS).p99_9 == 1.0
    assert distribution(histogram, scale=1e6, n_eff=P99_9_NEEDS - 1).p99_9 is None


def test_the_gaps_of_one_stream_are_one_independent_sample() -> None:
    made = series(fields())
    Reader(1).gaps(holder := Slab(), np.full(10_000, MS, np.uint64))
    made.add(holder.series[0, 0])
    assert distributions(made)["itl_ms"].count == 10_000
    assert distributions(made)["itl_ms"].p99_9 is None


def test_metrics_without_a_sample_are_there_and_empty() -> None:
    reported = distributions(Series())
    assert list(reported) == list(METRICS)
    assert all((each.count, each.p50, each.mean) == (0, None, None) for each in reported.values())


def test_costs_are_of_everything_with_usage_and_the_unpriced_are_counted() -> None:
    prices = Prices([[price({"input": 2, "output": 10})]], "plan")
    made = series(fields(), fields(outcome=Outcome.STREAM_ERROR), fields(output_tokens=UNKNOWN), prices=prices)
    reported = cost(made, 60, date="plan")
    assert reported.usd == pytest.approx(2 * (100 * 2 + 11 * 10) / 1e6, rel=1e-12)
    assert (reported.priced_requests, reported.unpriced_requests) == (2, 1)
    assert reported.usd_per_1k_requests == pytest.approx(reported.usd * 500, rel=1e-12)
    assert reported.usd_per_day == pytest.approx(reported.usd * 1440, rel=1e-12)
    assert made.metrics["cost_usd"].count == 1


def test_an_unknown_price_is_no_cost() -> None:
    reported = cost(series(fields(), prices=Prices([[]], None)), 60, date=None)
    assert (reported.usd, reported.priced_requests, reported.unpriced_requests) == (None, 0, 1)


WINDOWS = [
    ("closed: from the phase's start to the last end", {}, 3, 7, 7.0),
    ("open: the phase's duration, though the ends drain quickly", {"rate": 5, "duration_ns": 10 * SECOND}, 1, 9, 10.0),
    ("open: the ends where they take longer", {"rate": 5, "duration_ns": 10 * SECOND}, 1, 14, 13.0),
    ("open: requests over the rate", {"rate": 5, "requests": 40}, 1, 8, 8.0),
]


@pytest.mark.parametrize(("why", "shape", "first", "last", "expected"), WINDOWS, ids=[row[0] for row in WINDOWS])
def test_rates_are_over_the_window_of_the_phase(why: str, shape: Any, first: int, last: int, expected: float) -> None:
    made = series(fields(end_ns=START + first * SECOND), fields(end_ns=START + last * SECOND))
    times = PhaseTimes(start_ns=START, end_ns=START + 7 * SECOND)
    now = START + 20 * SECOND
    assert window_ns(plan(**shape).phases[0], times, made, now_ns=now, stopped=False) == expected * SECOND


def test_a_stopped_run_is_not_credited_with_the_time_it_did_not_run() -> None:
    times = PhaseTimes(start_ns=START, end_ns=START + 4 * SECOND)
    phase = plan(rate=5, duration_ns=60 * SECOND).phases[0]
    made = series(fields(end_ns=START + SECOND), fields(end_ns=START + 4 * SECOND))
    assert window_ns(phase, times, made, now_ns=START + 9 * SECOND, stopped=True) == 4 * SECOND


@pytest.mark.parametrize("ttft_ms", [0.5, 1, 49.9, 1000, 60_000])
def test_a_native_bucket_holds_the_value_that_was_counted_in_it(ttft_ms: float) -> None:
    """The number of a bucket is all that Prometheus gets: one off, and every quantile is 4.4 % off."""
    counted = native_buckets(series(fields(first_token_ns=START + 5 + round(ttft_ms * 1e6), send_ns=START + 5)))
    ((number, count),) = counted["ttft_ms"].items()
    low, high = (2 ** (end / 2**NATIVE_SCHEMA) for end in (number - 1, number))
    assert count == 1
    assert low * (1 - 1e-3) <= ttft_ms / 1e3 <= high * (1 + 1e-3)
    assert high / low == pytest.approx(1.0443, abs=1e-4)


def test_buckets_add_up_to_the_samples() -> None:
    reported = buckets(series(fields(), fields(first_token_ns=START + 3000 * SECOND)))
    assert sum(reported["ttft_ms"]) == 2
    assert reported["ttft_ms"][-1] == 1
    assert "itl_ms" not in reported


outcomes = st.sampled_from(list(Outcome))
rows = st.lists(
    st.builds(
        lambda outcome, target, late, length: (
            unsent(Unsent.BUDGET, target=target)
            if outcome is Outcome.UNSENT
            else fields(outcome=outcome, target=target, send_ns=START + late, end_ns=START + late + length)
        ),
        outcomes,
        st.integers(0, 2),
        st.integers(1, 10 * MS),
        st.integers(0, 10 * SECOND),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(rows, rows)
def test_the_sum_of_two_ticks_is_the_books_of_both_and_a_checkpoint_keeps_them(
    first: list[dict[str, int]], second: list[dict[str, int]]
) -> None:
    summed = Slab()
    for part in (first, second):
        if part:
            summed.add(Slab.unpacked(slab(*part, targets=3).packed()))
    whole = slab(*first, *second, targets=3) if first or second else Slab()
    assert set(summed.series) == set(whole.series)
    for key, expected in whole.series.items():
        found = summed.series[key]
        assert found.tally.tolist() == expected.tally.tolist()
        assert {n: h.packed()[:2] for n, h in found.metrics.items()} == {
            n: h.packed()[:2] for n, h in expected.metrics.items()
        }
