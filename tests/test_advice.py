"""The verdict in words: a sentence that fits its reason, and what to do about each code."""

from __future__ import annotations

import pytest

from llm_latency_lens.collectors.snapshot import Distribution, Reason, Verdict
from llm_latency_lens.collectors.verdict import AGAINST, NOTES
from llm_latency_lens.exporters.advice import BY_REASON, CURES, STATES, explained, plain_state, waited
from tests.support_runs import FakeRun

# Codes whose own text says what to do.
SELF_EXPLAINED = {
    "ring_drops",
    "totals_do_not_balance",
    "stopped",
    "clock_steps",
    "mixed_clocks",
    "user_clock",
    "lateness",
    "ttft_coalesced",
    "cpu",
    "steal",
    "worker_restarts",
    "censored",
    "cached_prompts",
    "prompt_length",
    "output_length",
    "drawn_rate",
    "repeated_prompts",
}


def test_every_code_of_a_verdict_has_something_to_do_about_it() -> None:
    """A reason without a way out leaves its reader where he was."""
    codes = {rule.code for rule in (*AGAINST, *NOTES)}
    assert codes - SELF_EXPLAINED - set(CURES) == set()


def test_every_reason_that_invalidates_has_a_sentence_of_its_own() -> None:
    """A run that was ended early was not disturbed by its client, and should not say so."""
    assert {rule.code for rule in AGAINST} <= set(BY_REASON)
    early = Verdict(state="INVALID", reasons=[Reason("note", "", note=True), Reason("stopped", "by an error")])
    assert plain_state(early).startswith("the run was ended early")
    assert plain_state(Verdict(state="INVALID", reasons=[Reason("of_tomorrow", "")])) == STATES["INVALID"]
    assert plain_state(Verdict(state="VALID")) == STATES["VALID"]


def test_what_to_do_follows_the_fact_once() -> None:
    """The text of some rules says it already; twice is noise."""
    assert explained(Reason("timeouts", "2.0% timed out")) == f"2.0% timed out: {CURES['timeouts']}"
    said = f"2.0% timed out: {CURES['timeouts']}"
    assert explained(Reason("timeouts", said)) == said


@pytest.mark.parametrize(
    ("late_ms", "own_ms", "cap", "load", "said"),
    [
        (400.0, 0.2, 20, "open", True),
        (0.9, 0.2, 20, "open", False),
        (400.0, 390.0, 20, "open", False),
        (400.0, 0.2, None, "open", False),
        (400.0, 0.2, 20, "closed", False),
    ],
)
def test_requests_that_waited_for_the_cap_are_not_blamed_on_the_client(
    late_ms: float, own_ms: float, cap: int | None, load: str, said: bool
) -> None:
    """The one cure is a higher cap, the other a faster client."""
    run = FakeRun(ticks=2, targets=1)
    list(run.snapshots())
    report = run.report()
    report.run.load = load
    report.metrics["lateness_ms"] = Distribution(count=9, p99=late_ms)
    report.metrics["client_lateness_ms"] = Distribution(count=9, p99=own_ms)
    plan = {"phases": [{"load": {"rate": 5, "max_in_flight": cap}}]}
    sentence = waited(report, plan)
    assert ("requests waited for your cap (max_in_flight 20)" in sentence) == said
    report.requests.unsent = {"no_capacity": 3}
    assert ("3 requests were not sent" in waited(report, plan)) == (load == "open")
