"""Objectives judged on a report: of the run, of a target, of a phase; requests by their share."""

from __future__ import annotations

import msgspec
import pytest

from llm_latency_lens.collectors.slos import judge_slos
from llm_latency_lens.collectors.snapshot import Report
from tests.support_runs import FakeRun


@pytest.fixture(scope="module")
def report() -> Report:
    """A run of two targets; their numbers differ."""
    run = FakeRun(ticks=20, targets=2)
    for _ in run.snapshots():
        pass
    return run.report()


def state(report: Report, expression: str) -> tuple[float | None, str]:
    (slo,) = judge_slos((expression,))(report, None)
    assert slo.expression == expression
    return slo.value, slo.state


def test_an_objective_of_a_target_is_judged_by_its_own_requests(report: Report) -> None:
    """A plan with two targets once judged both together: a bad one passed behind a good one."""
    for target in report.targets:
        value, _ = state(report, f"[target={target.name}] ttft_ms.p99 <= 1")
        assert value == target.metrics["ttft_ms"].p99
    assert state(report, "ttft_ms.p99 <= 1")[0] == report.metrics["ttft_ms"].p99
    assert state(report, "[target=nobody] ttft_ms.p99 <= 1") == (None, "UNDECIDED")


def test_an_objective_of_a_phase_is_judged_by_that_phase(report: Report) -> None:
    """What holds at 5 requests/s need not hold at 50; a target of one phase is in no report, and is left open."""
    requests = report.run.phases[0].requests
    failed = sum(requests.failed.values())
    assert state(report, "[phase=steady] error_rate <= 100%") == (failed / (failed + requests.ok), "PASS")  # no doubt
    name = report.targets[0].name
    assert state(report, f"[phase=steady target={name}] error_rate <= 1") == (None, "UNDECIDED")


@pytest.mark.parametrize(
    ("line", "expected"), [("request", "FAIL"), ("request [98%]", "UNDECIDED"), ("request [97%]", "UNDECIDED")]
)
def test_requests_are_judged_by_the_share_of_the_line(report: Report, line: str, expected: str) -> None:
    """Without a share one slow request fails a run of a million; a share needs an interval (tests/test_certainty.py)."""
    throughput = msgspec.structs.replace(report.throughput, goodput_share=0.975)
    judged = msgspec.structs.replace(report, throughput=throughput)
    assert state(judged, f"{line}: ttft_ms <= 800") == (0.975, expected)
