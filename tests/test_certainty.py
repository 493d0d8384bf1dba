"""How sure the numbers of a run are, through the real collector: intervals, steady part, objectives, goals, self-checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from llm_latency_lens.cli.stops import StopRules
from llm_latency_lens.collectors.confidence import INTERVALS
from llm_latency_lens.collectors.run_ladders import RunLadders
from llm_latency_lens.collectors.self_checks import Arrivals, anderson_darling, littles_law
from llm_latency_lens.collectors.series import Slab, Tally
from llm_latency_lens.collectors.snapshot import ENCODER, Report, Slo, Snapshot
from llm_latency_lens.engine.plan.plan import Limits, Plan
from llm_latency_lens.engine.records.record import Outcome
from llm_latency_lens.engine.runs.rundir import SNAPSHOT
from tests.support_collector import MS, SECOND, START, fields, plan, records, slab
from tests.support_samples import sample
from tests.support_ticks import Floats, collected, rows_of

RATE, DURATION = 50, 60


def arrivals(seconds: int = DURATION, rate: float = RATE, seed: int = 1) -> Floats:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(seconds * rate)))


def lognormal(count: int, seed: int = 2) -> Floats:
    """Independent, p50 50 ms, p99 160 ms."""
    found: Floats = 0.05 * np.exp(0.5 * np.random.default_rng(seed).standard_normal(count))
    return found


def planned(**given: Any) -> Plan:
    shape = {name: given.pop(name) for name in ("targets", "phases", "rate", "duration_ns") if name in given}
    return msgspec.structs.replace(plan(**({"rate": RATE, "duration_ns": DURATION * SECOND} | shape)), **given)


def run_of(
    root: Path, ttft: Floats | None = None, *, rate: float = RATE, **given: Any
) -> tuple[Report, list[Snapshot]]:
    """An undisturbed run of a minute: independent latencies unless others are given."""
    times = arrivals(rate=rate)
    return collected(root, planned(rate=rate, **given), rows_of(times, lognormal(len(times)) if ttft is None else ttft))


def states(report: Report) -> list[str]:
    return [slo.state for slo in report.slo]


# --- intervals --------------------------------------------------------------------------------------------------------


def test_every_distribution_of_a_summary_says_how_sure_it_is(tmp_path: Path) -> None:
    """A percentile without an interval is a number that nobody can compare."""
    times = arrivals()
    report, ticks = collected(tmp_path, planned(targets=2), rows_of(times, lognormal(len(times)), targets=2))
    for part in (report, *report.run.phases, *report.targets):
        ttft = part.metrics["ttft_ms"]
        assert ttft.n_eff is not None
        assert 0.5 * ttft.count < ttft.n_eff <= ttft.count
        assert ttft.ci95 is not None
        assert ttft.p50 is not None
        low, high = ttft.ci95.p50
        assert low is not None
        assert high is not None
        assert low < ttft.p50 < high
        assert low < 50 < high
        assert ttft.ci95.p99_9[1] is None
        assert ttft.p99_9 is None
    assert report.targets[0].metrics["ttft_ms"].count * 2 == report.metrics["ttft_ms"].count
    assert report.metrics["tcp_ms"].ci95 is None
    assert set(msgspec.to_builtins(report.metrics["ttft_ms"].ci95)) == set(INTERVALS)
    assert ticks[5].intervals[0].metrics["ttft_ms"].ci95 is None


def test_requests_that_share_a_queue_count_for_less_and_the_verdict_says_so(tmp_path: Path) -> None:
    """n alone makes the intervals of a loaded server far too narrow."""
    made = sample("mm1 0.9", 1, RATE * DURATION, RATE, seed=3)
    times, ttft = made.end[0] - made.latency[0], made.latency[0]
    report, _ = collected(tmp_path, planned(), rows_of(times, ttft))
    n_eff = report.metrics["ttft_ms"].n_eff
    assert n_eff is not None
    assert n_eff < len(times) / 10
    assert "correlated" in [reason.code for reason in report.verdict.reasons]


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [{0}, {7, 8, 31}, {20, 40, 59}])
def test_a_killed_collector_leaves_no_trace_in_intervals(tmp_path: Path, killed_after: set[int]) -> None:
    """The ladders come back from the checkpoint exactly, before and after it is written anew."""
    given = {"slo": ("ttft_ms.p95 <= 100", "error_rate <= 0.01"), "targets": 2}
    times = arrivals()
    rows = rows_of(times, lognormal(len(times)), targets=2)
    rows += [fields(request=9000 + i, outcome=Outcome.HTTP_SERVER, end_ns=START + i * SECOND + 5) for i in range(40)]
    undisturbed, _ = collected(tmp_path / "one", planned(**given), rows)
    killed, _ = collected(tmp_path / "two", planned(**given), rows, killed_after=killed_after, rebased_after={10, 30})
    for name in ("metrics", "steady", "slo"):
        assert getattr(killed, name) == getattr(undisturbed, name)
    assert [target.metrics for target in killed.targets] == [target.metrics for target in undisturbed.targets]
    assert killed.metrics["ttft_ms"].ci95 is not None


# --- objectives -------------------------------------------------------------------------------------------------------


def test_an_objective_is_decided_only_by_a_complete_interval(tmp_path: Path) -> None:
    """A point estimate just under the bound passes half of the servers that are over it."""
    objectives = ("ttft_ms.p50 <= 60", "ttft_ms.p50 <= 40", "ttft_ms.p50 <= 50.4", "ttft_ms.p99_9 <= 5000")
    report, _ = run_of(tmp_path, slo=objectives)
    held, broken, near, rare = report.slo
    assert [held.state, broken.state, near.state, rare.state] == ["PASS", "FAIL", "UNDECIDED", "UNDECIDED"]
    assert near.ci95 == report.metrics["ttft_ms"].ci95.p50  # type: ignore[union-attr]
    for each in (near, rare):
        assert each.needs_requests is not None
        assert each.needs_s == pytest.approx(each.needs_requests / RATE, rel=0.1)
    assert rare.needs_requests is not None
    assert rare.needs_requests > 15_000
    assert (held.needs_requests, broken.needs_s) == (None, None)


def test_what_is_no_sample_is_judged_as_it_is(tmp_path: Path) -> None:
    """The longest request of the run is a fact, and so is its rate: no interval could say more."""
    objectives = ("ttft_ms.max <= 60000", "ttft_ms.max <= 1", "requests_per_s >= 10", "error_rate <= 0")
    report, _ = run_of(tmp_path, slo=objectives)
    assert states(report) == ["PASS", "FAIL", "PASS", "PASS"]
    assert all(slo.ci95 is None for slo in report.slo)


@pytest.mark.slow
def test_shares_are_judged_by_their_binomial_interval(tmp_path: Path) -> None:
    """3,000 requests without a failure say that under 0.13 % fail, and nothing about 0.01 %."""
    objectives = (
        "error_rate <= 0.01", "error_rate <= 0.0001", "request [80%]: ttft_ms <= 100", "request [99%]: ttft_ms <= 100",
        "request: ttft_ms <= 60000",
    )  # fmt: skip
    report, _ = run_of(tmp_path, slo=objectives[:4])
    assert states(report) == ["PASS", "UNDECIDED", "PASS", "FAIL"]
    complete, _ = run_of(tmp_path / "all", slo=objectives[4:])
    assert states(complete) == ["PASS"]


@pytest.mark.slow
def test_an_objective_of_a_target_in_a_phase_has_an_interval_of_its_own(tmp_path: Path) -> None:
    """No slice of the report has both."""
    times = arrivals()
    name = planned(targets=2).targets[1].name
    given = planned(targets=2, slo=(f"[target={name} phase=phase-0] ttft_ms.p50 <= 60",))
    report, _ = collected(tmp_path, given, rows_of(times, lognormal(len(times)), targets=2))
    assert states(report) == ["PASS"]
    assert report.slo[0].value == report.targets[1].metrics["ttft_ms"].p50


def test_a_run_too_short_for_its_correlation_fails_what_it_misses_by_far(tmp_path: Path) -> None:
    """Three seconds have no variance between blocks; a gate must still close on a server that is down to a crawl."""
    times = arrivals(3)
    given = planned(slo=("ttft_ms.p99 <= 1", "ttft_ms.p99 <= 5000", "ttft_ms.p50 <= 5000"))
    report, _ = collected(tmp_path, given, rows_of(times, lognormal(len(times))))
    assert states(report) == ["FAIL", "UNDECIDED", "PASS"]
    assert report.metrics["ttft_ms"].n_eff is None
    assert report.slo[1].needs_requests


def test_values_that_are_all_equal_are_known(tmp_path: Path) -> None:
    """A deterministic server has no spread, and 3,000 equal answers no doubt."""
    report, _ = run_of(tmp_path, np.full(RATE * DURATION, 0.1), slo=("ttft_ms.p99_9 <= 100", "ttft_ms.p50 < 100"))
    assert states(report) == ["PASS", "FAIL"]


# --- the stationary part ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_slow_start_is_not_in_the_steady_part(tmp_path: Path) -> None:
    """Five seconds of cold caches would otherwise be the p99 of the minute."""
    times = arrivals()
    ttft = np.where(times < 5, 10.0, 1.0) * lognormal(len(times))
    objective = ("ttft_ms.mean <= 65",)
    report, _ = collected(tmp_path / "all", planned(slo=objective), rows_of(times, ttft))
    steady = report.steady
    assert steady is not None
    assert steady.state == "steady"
    assert steady.from_s is not None
    assert 5 <= steady.from_s <= 10
    stationary = np.quantile(lognormal(len(times))[times > steady.from_s], 0.99) * 1000
    assert steady.metrics["ttft_ms"].p99 == pytest.approx(stationary, rel=0.05)
    assert steady.requests.ok < report.requests.ok
    assert steady.throughput.requests_per_s == pytest.approx(RATE, rel=0.1)
    only, _ = collected(tmp_path / "steady", planned(slo=objective, steady=True), rows_of(times, ttft))
    assert states(report) == ["UNDECIDED"]  # the slow start makes the interval wide
    assert states(only) == ["PASS"]
    assert only.slo[0].value == steady.metrics["ttft_ms"].mean


def test_a_run_that_is_steady_keeps_its_numbers(tmp_path: Path) -> None:
    """What was not cut must equal the run to the last digit, or nobody knows which of both to quote."""
    report, _ = run_of(tmp_path)
    assert report.steady is not None
    assert report.steady.metrics == report.metrics
    assert report.steady.requests.ok == report.requests.ok


def test_a_drift_is_named_with_its_size_per_hour(tmp_path: Path) -> None:
    """A memory leak of the server shows here, hours before it fails."""
    times = arrivals()
    report, _ = collected(tmp_path, planned(), rows_of(times, lognormal(len(times)) * (1 + times / 60)))
    assert report.steady is not None
    assert report.steady.state == "drifting"
    drift = report.steady.drift["ttft_ms"]
    assert drift.ci95[0] < 57 * 60 < drift.ci95[1]  # 57 ms in the minute
    assert "not_steady" in [reason.code for reason in report.verdict.reasons]


# --- until, and how a run ended ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_goal_is_reached_when_the_interval_is_narrow_enough(tmp_path: Path) -> None:
    """The supervisor stops the run on what the collector publishes."""
    expression = "ttft_ms.p50 +-5%"
    _, ticks = run_of(tmp_path, until=(expression,))
    reached = [tick for tick in ticks if tick.until and tick.until[0].reached]
    assert 5 < reached[0].tick < 50
    assert all(tick.until[0].reached for tick in ticks[reached[0].tick : -1])
    share = reached[0].until[0].half_width_share
    assert share is not None
    assert share <= 0.05
    rules = StopRules(planned(until=(expression,), limits=Limits()), tmp_path)
    (tmp_path / SNAPSHOT).write_bytes(ENCODER.encode(ticks[3]))
    assert rules.reason() is None
    (tmp_path / SNAPSHOT).write_bytes(ENCODER.encode(reached[0]))
    assert rules.reason() == "until"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("", "duration"), ("until", "until"), ("budget_usd", "budget"), ("slo", "slo"), ("max_error_rate", "error_rate"),
        ("died: the supervisor was killed", "failed"), ("failed: no worker", "failed"),
    ],
)  # fmt: skip
def test_the_summary_says_what_ended_the_run(tmp_path: Path, reason: str, expected: str) -> None:
    """Without it a run of 40 s looks like a plan of 40 s."""
    report, _ = collected(tmp_path, planned(), rows_of(arrivals(2), lognormal(100)), stop_reason=reason)
    assert report.run.ended_by == expected


# --- self-checks ------------------------------------------------------------------------------------------------------


def law(in_flight: int) -> object:
    """60 ticks in which ten requests of 100 ms end, with so many in flight at the end of each."""
    ladders, total = RunLadders(), Slab()
    for tick in range(60):
        made = slab(
            *(fields(send_ns=START + tick * SECOND, end_ns=START + tick * SECOND + 100 * MS) for _ in range(100))
        )
        tally = made.at((0, 0)).tally
        tally[Tally.IN_FLIGHT_TICKS], tally[Tally.IN_FLIGHT_SUM] = 1, in_flight + tick % 3
        ladders.add(tick, made)
        total.add(made)
    return littles_law(ladders, 0, total.at((0, 0)), 60 * SECOND, SECOND)


def test_in_flight_is_the_rate_times_the_duration() -> None:
    """Our own totals against each other: a lost or doubled record shows without knowing the server."""
    assert law(9) is None
    assert "10.00" in str(law(30))


def test_poisson_arrivals_are_known_from_others() -> None:
    """An open loop that sends in bursts measures another queue than it claims."""
    random = np.random.default_rng(5)
    found = [anderson_darling(random.exponential(0.01, 1000), 100) for _ in range(200)]
    assert sum(each > 6 for each in found) <= 2
    assert anderson_darling(np.full(1000, 0.01), 100) > 6
    assert anderson_darling(random.exponential(0.01, 1000), 130) > 6


@pytest.mark.parametrize(("jitter_s", "codes"), [(0.0002, []), (0.02, ["arrivals"])])
def test_constant_arrivals_are_checked_against_their_interval(jitter_s: float, codes: list[str]) -> None:
    """Sends off their slots are noted even where nobody looks at lateness."""
    random = np.random.default_rng(6)
    times = START + ((np.arange(500) / RATE + random.uniform(0, jitter_s, 500)) * SECOND).astype(np.int64)
    checked = Arrivals(plan(rate=RATE, duration_ns=DURATION * SECOND))
    checked.add(records(*(fields(request=i, send_ns=int(each)) for i, each in enumerate(times))))
    assert [reason.code for reason in checked.check()] == codes


def test_an_slo_without_a_sample_is_undecided(tmp_path: Path) -> None:
    """Nothing was measured: neither held nor broken."""
    rows = [fields(request=i, outcome=Outcome.HTTP_SERVER, end_ns=START + SECOND + i) for i in range(50)]
    report, _ = collected(tmp_path, planned(slo=("ttft_ms.p99 <= 1", "error_rate <= 0.01")), rows)
    assert report.slo[0] == Slo("ttft_ms.p99 <= 1", None, "UNDECIDED")
    assert report.slo[1].state == "FAIL"
    assert report.steady is not None
    assert report.steady.state == "too_short"
