"""The verdict's rules, each at its bound and just past it."""

from __future__ import annotations

from typing import Any

import pytest

from llm_latency_lens.collectors.snapshot import Client, Lag, Replies, Verdict
from llm_latency_lens.collectors.verdict import Facts, judge

ENOUGH = {"ok": 1000, "sent": 1000, "planned": 1000, "settled": 1000, "finished": True}


def verdict(**given: Any) -> Verdict:
    client = {name: given.pop(name) for name in list(given) if name in Client.__struct_fields__}
    return judge(Facts(Client(**client), **ENOUGH | given))


def reasons(judged: Verdict) -> list[str]:
    return [reason.code for reason in judged.reasons]


AGAINST: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # code, within its bound, past it
    ("ring_drops", {"ring_drops": 0}, {"ring_drops": 1}),
    ("ring_drops", {"gap_drops": 0}, {"gap_drops": 3}),
    ("totals_do_not_balance", {"planned": None}, {"settled": 999}),
    ("clock_steps", {"stepped": 0}, {"stepped": 1}),
    ("clock_steps", {"clock_steps": 0}, {"clock_steps": 1}),
    ("mixed_clocks", {"clock": "kernel"}, {"clock": "mixed"}),
    (
        "user_clock",
        {"clock": "user", "loop_lag_us": Lag(p99=1000.0)},
        {"clock": "user", "loop_lag_us": Lag(p99=1001.0)},
    ),
    ("user_clock", {"clock": "kernel"}, {"clock": "user"}),
    (
        "lateness",
        {"open_loop": True, "client_lateness_p99_ms": 1.0},
        {"open_loop": True, "client_lateness_p99_ms": 1.01},
    ),
    (
        "lateness",
        {"open_loop": True, "client_lateness_p99_ms": 5.0, "mean_interval_ms": 100.0},
        {"open_loop": True, "client_lateness_p99_ms": 5.1, "mean_interval_ms": 100.0},
    ),
    (
        "lateness",
        {"open_loop": False, "client_lateness_p99_ms": 500.0},
        {"open_loop": True, "client_lateness_p99_ms": 500.0},
    ),
    ("cpu", {"cpu_utilisation": 0.9}, {"cpu_utilisation": 0.91}),
    ("steal", {"steal_share": 0.05}, {"steal_share": 0.051}),
    ("worker_restarts", {"restarts": 0}, {"restarts": 1}),
    ("censored", {"in_flight_at_end": 10}, {"in_flight_at_end": 11}),
    ("stopped", {"died": ""}, {"died": "died: the supervisor was killed"}),
]


@pytest.mark.parametrize(("code", "within", "past"), AGAINST)
def test_a_rule_invalidates_past_its_bound_and_not_at_it(
    code: str, within: dict[str, Any], past: dict[str, Any]
) -> None:
    assert verdict(**within).state == "VALID"
    reported = verdict(**past)
    assert reported.state == "INVALID"
    assert [reason.code for reason in reported.reasons] == [code]
    assert any(character.isdigit() for character in reported.reasons[0].detail) or code in ("mixed_clocks", "stopped")


NOTES = [
    ("collector_restarts", {"collector_restarts": 1}),
    ("gaps_coalesced", {"itl_coalesced_share": 0.6}),
    ("loop_lag", {"loop_lag_us": Lag(p99=6000.0)}),
    ("timeouts", {"timeouts": 11}),
    ("clamped", {"clamped": 1}),
    ("export_failures", {"export_failures": 1}),
    ("records_dropped", {"records_dropped": 1}),
    ("details_dropped", {"detail_drops": 1}),
    ("cached_prompts", {"replies": Replies(cached_share=0.11)}),
    ("prompt_length", {"prompt_length_ratio": 1.11}),
    ("output_length", {"replies": Replies(output_ratio=0.89)}),
    ("output_length", {"replies": Replies(output_ratio=1.0, length_asked=100, shorter=6, longer=5)}),
    ("cut_short", {"replies": Replies(length_asked=100, cut_short=2)}),
    ("finish_missing", {"replies": Replies(finish={"stop": 98, "missing": 2})}),
    ("identical_replies", {"replies": Replies(compared=100, identical=6)}),
    ("repeated_prompts", {"replies": Replies(finish={"stop": 100}, repeated_prompts=11)}),
    ("usage_under_events", {"replies": Replies(counted=100, usage_under_events=2)}),
    ("tokens_per_event", {"replies": Replies(tokens_per_event=3.2)}),
    ("burst_replies", {"burst_replies": 11}),
    ("drawn_rate", {"draws": "the poisson arrivals of steady drew 107 requests in 10 s"}),
]


@pytest.mark.parametrize(("code", "fact"), NOTES)
def test_what_harms_no_number_is_told_and_leaves_the_run_valid(code: str, fact: dict[str, Any]) -> None:
    reported = verdict(**fact)
    assert (reported.state, [(reason.code, reason.note) for reason in reported.reasons]) == ("VALID", [(code, True)])


def test_what_invalidates_is_no_note() -> None:
    """People read the first lines; a note that looks like a reason sends them after the wrong cause."""
    assert [(reason.code, reason.note) for reason in verdict(restarts=1, clamped=1).reasons] == [
        ("worker_restarts", False),
        ("clamped", True),
    ]


def test_within_their_bounds_the_prompts_are_not_worth_a_note() -> None:
    """Every run would end in warnings that nobody reads."""
    replies = Replies(
        finish={"stop": 99, "missing": 11},
        missing_expected=10,  # of an endpoint whose description names no finish reason
        length_asked=110,
        shorter=6,
        longer=5,
        cut_short=1,
        output_ratio=0.91,
        compared=100,
        identical=5,
        repeated_prompts=11,
        counted=110,
        usage_under_events=1,
        tokens_per_event=1.05,
        cached_share=0.1,
    )
    assert not verdict(prompt_length_ratio=1.09, burst_replies=10, replies=replies).reasons


def test_thirty_ok_requests_are_the_least() -> None:
    assert verdict(ok=30).state == "VALID"
    reported = verdict(ok=29)
    assert (reported.state, reported.reasons[0].code) == ("INSUFFICIENT", "too_few_samples")


def test_invalid_outranks_insufficient_and_the_worst_stands_first() -> None:
    reported = verdict(ok=1, ring_drops=2, export_failures=1)
    assert reported.state == "INVALID"
    assert [reason.code for reason in reported.reasons] == ["ring_drops", "export_failures"]


def test_books_are_judged_when_they_are_closed() -> None:
    assert verdict(settled=10, finished=False).state == "VALID"


def test_the_error_budget_has_every_cause() -> None:
    budget = verdict(open_loop=True, client_lateness_p99_ms=0.2, itl_coalesced_share=0.1).error_budget
    assert budget["histogram_resolution"] == pytest.approx(0.001, abs=5e-5)
    assert (budget["client_lateness_p99_ms"], budget["lateness_bound_ms"], budget["itl_coalesced_share"]) == (
        0.2,
        1.0,
        0.1,
    )
    assert budget["loop_lag_touches_stamps"] is True
    assert budget["stamps"] == "read"
    assert verdict(stamps="segment").error_budget["loop_lag_touches_stamps"] is False


def test_a_worker_without_a_cpu_invalidates_unless_each_segment_has_its_stamp() -> None:
    """What a starved worker reads has merged in the kernel meanwhile: only a stamp for every segment survives that."""
    assert "starved" in reasons(verdict(run_queue_wait_share=0.06))
    assert verdict(run_queue_wait_share=0.06).state == "INVALID"
    assert verdict(run_queue_wait_share=0.04).state == "VALID"
    held = verdict(run_queue_wait_share=0.9, stamps="segment")
    assert (held.state, reasons(held)) == ("VALID", ["starved"])
    assert verdict(run_queue_wait_share=0.06, stamps="mixed").state == "INVALID"


def test_first_tokens_that_shared_late_reads_invalidate() -> None:
    """Their TTFT is an upper bound, and nobody knows how far off."""
    assert reasons(verdict(ttft_coalesced_share=0.06)) == ["ttft_coalesced"]
    assert verdict(ttft_coalesced_share=0.05).state == "VALID"


def test_stops_invalidate_a_closed_loop_only() -> None:
    """In an open loop the same stop shows as lateness; a closed loop just sends less and looks healthy."""
    assert reasons(verdict(closed_loop=True, stopped_share=0.02)) == ["client_stopped"]
    assert verdict(closed_loop=True, stopped_share=0.009).state == "VALID"
    assert verdict(stopped_share=0.5).state == "VALID"
