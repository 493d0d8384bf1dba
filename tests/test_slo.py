"""Service level objectives: what is one, what is near one, and when it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.metrics import METRICS, STATISTICS
from llm_latency_lens.engine.plan.slo import (
    OPERATORS,
    PER_REQUEST,
    TOTALS,
    Objective,
    check_slo,
    conditions_of,
    is_per_request,
    objective_of,
    request_conditions,
)

OBJECTIVES: list[tuple[str, tuple[str, str | None, str, float]]] = [
    ("ttft_ms.p99 <= 500", ("ttft_ms", "p99", "<=", 500)),
    ("ttft_ms.p99<=500", ("ttft_ms", "p99", "<=", 500)),
    ("  ttft_ms.p99  <=  500  ", ("ttft_ms", "p99", "<=", 500)),
    ("itl_ms.p99.9 < 80.5", ("itl_ms", "p99_9", "<", 80.5)),
    ("itl_ms.p99_9 < .5", ("itl_ms", "p99_9", "<", 0.5)),
    ("decode_tps.min >= 1e2", ("decode_tps", "min", ">=", 100)),
    ("error_rate <= 0.01", ("error_rate", None, "<=", 0.01)),
    ("goodput_share > 0", ("goodput_share", None, ">", 0)),
]
WRONG: list[tuple[str, str, str]] = [
    ("no comparison", "ttft_ms.p99", "is not METRIC <= NUMBER"),
    ("no number", "ttft_ms.p99 <= fast", "is not METRIC <= NUMBER"),
    ("a unit", "ttft_ms.p99 <= 500ms", "is not METRIC <= NUMBER"),
    ("a negative bound", "ttft_ms.p99 <= -5", "is not METRIC <= NUMBER"),
    ("equality", "error_rate == 0", "is not METRIC <= NUMBER"),
    ("two comparisons", "1 <= ttft_ms.p99 <= 5", "is not METRIC <= NUMBER"),
    ("and over the run", "ttft_ms.p99 <= 5 and error_rate <= 1", "is not METRIC <= NUMBER"),
    ("nothing", "", "is not METRIC <= NUMBER"),
    ("a distribution without statistic", "ttft_ms <= 500", "say which: ttft_ms.p99"),
    ("a total with statistic", "error_rate.p99 <= 1", "is one number, write it without .p99"),
    ("a metric that is near one", "ttf_ms.p99 <= 1", "there is no 'ttf_ms'; did you mean 'ttft_ms'"),
    ("a metric that is near none", "xyzzy.p99 <= 1", "there is no 'xyzzy'; known: ttft_ms, "),
    ("a statistic that is near one", "ttft_ms.p999 <= 1", "there is no 'p999'; did you mean 'p99"),
    ("a statistic that is near none", "ttft_ms.foo <= 1", "there is no 'foo'; known: p50, "),
]
WRONG_PER_REQUEST: list[tuple[str, str, str]] = [
    ("a statistic of one request", "request: ttft_ms.p99 <= 1", r"there is no 'ttft_ms.p99'; did you mean 'ttft_ms'"),
    ("a total of one request", "request: error_rate <= 1", "there is no 'error_rate'"),
    (
        "gaps are many in one request",
        "request: itl_ms <= 1",
        "one request has many itl_ms; bound the longest, itl_max_ms",
    ),
    ("nothing", "request:", "'' is not METRIC"),
    ("half a condition", "request: ttft_ms <= 1 and", "is not METRIC"),
    ("or", "request: ttft_ms <= 1 or e2e_ms <= 2", "is not METRIC"),
]


@pytest.mark.parametrize(("expression", "parts"), OBJECTIVES)
def test_an_objective_is_a_comparison_over_the_run(expression: str, parts: tuple[str, str | None, str, float]) -> None:
    assert objective_of(expression) == Objective(expression, *parts)
    assert not is_per_request(expression)
    check_slo(expression)


@pytest.mark.parametrize(("why", "expression", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_no_objective_is_refused_with_what_is_near(why: str, expression: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        check_slo(expression)
    assert f"SLO {expression!r}" in str(error.value)


@pytest.mark.parametrize(("why", "expression", "message"), WRONG_PER_REQUEST, ids=[r[0] for r in WRONG_PER_REQUEST])
def test_what_no_request_can_meet_is_refused(why: str, expression: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_slo(expression)


def test_conditions_of_a_request_are_joined_by_and() -> None:
    expression = " request:ttft_ms <= 800  and tpot_ms<40 and\te2e_tps >= 10"
    assert is_per_request(expression)
    assert conditions_of(expression) == [("ttft_ms", "<=", 800), ("tpot_ms", "<", 40), ("e2e_tps", ">=", 10)]


def test_goodput_asks_for_all_conditions_of_all_expressions() -> None:
    plan = ("request: ttft_ms <= 800", "error_rate <= 0.1", "request: tpot_ms <= 40 and e2e_ms < 9000")
    assert [name for name, _, _ in request_conditions(plan)] == ["ttft_ms", "tpot_ms", "e2e_ms"]
    assert request_conditions(("error_rate <= 0.1",)) == []


def test_every_metric_and_statistic_can_be_asked_for() -> None:
    for metric in METRICS:
        for statistic in STATISTICS:
            assert objective_of(f"{metric}.{statistic} <= 1")[1:3] == (metric, statistic)
    for total in TOTALS:
        assert objective_of(f"{total} <= 1")[1:3] == (total, None)
    for metric in PER_REQUEST:
        assert conditions_of(f"request: {metric} <= 1") == [(metric, "<=", 1)]


@given(st.floats(0, 1e9), st.sampled_from(sorted(OPERATORS)))
def test_a_bound_holds_or_fails_exactly_where_it_lies(bound: float, comparison: str) -> None:
    objective = objective_of(f"ttft_ms.p99 {comparison} {bound!r}")
    assert objective.bound == bound
    assert objective.holds(bound) is ("=" in comparison)
    assert objective.holds(bound + 1) is (">" in comparison)
    assert objective.holds(bound - 1) is ("<" in comparison)
