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
    RequestObjective,
    check_slo,
    is_per_request,
    objective_of,
    parse_slo,
    precision_of,
    request_objectives,
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
    ("a unit that is none", "ttft_ms.p99 <= 500 parsecs", "is not METRIC <= NUMBER"),
    ("a unit of another metric", "ttft_ms.p99 <= 5%", "'%' is no unit of ttft_ms; units: ms, s, us"),
    ("a unit of what has none", "decode_tps.p50 >= 5s", "'s' is no unit of decode_tps; it has no unit here"),
    ("a filter that is none", "[provider=a] error_rate <= 1", r"\[provider=a\] is not \[target=NAME phase=NAME\]"),
    ("a filter twice", "[target=a target=b] error_rate <= 1", "is not .target=NAME phase=NAME., one of them or both"),
    ("a share over all", "request [101%]: ttft_ms <= 1", "the share must be over 0 % and at most 100 %"),
    ("a share of none", "request [0%]: ttft_ms <= 1", "the share must be over 0 % and at most 100 %"),
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


UNITS: list[tuple[str, float]] = [
    ("ttft_ms.p99 <= 500ms", 500),
    ("ttft_ms.p99 <= 1.5 s", 1500),
    ("itl_ms.p50 <= 250us", 0.25),
    ("error_rate <= 1%", 0.01),
    ("goodput_share >= 99.5 %", 0.995),
    ("requests_per_s >= 5", 5),
]
FILTERS: list[tuple[str, str | None, str | None]] = [
    ("[target=a] ttft_ms.p99 <= 1", "a", None),
    ("[phase=steady] ttft_ms.p99 <= 1", None, "steady"),
    (" [ phase=steady  target=a-2 ]ttft_ms.p99 <= 1", "a-2", "steady"),
    ("ttft_ms.p99 <= 1", None, None),
]
SHARES: list[tuple[str, float]] = [
    ("request: ttft_ms <= 1", 1),
    ("request [99%]: ttft_ms <= 1", 0.99),
    ("request [0.95]: ttft_ms <= 1", 0.95),
    ("[target=a] request[ 99.9 % ]: ttft_ms <= 1", 0.999),
]


@pytest.mark.parametrize(("expression", "bound"), UNITS)
def test_a_bound_may_have_a_unit(expression: str, bound: float) -> None:
    """The bound is compared with numbers in the metric's own unit: 1.5 s of a metric in ms must be 1500."""
    assert objective_of(expression).bound == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(("expression", "target", "phase"), FILTERS)
def test_an_objective_may_judge_one_target_and_phase(expression: str, target: str | None, phase: str | None) -> None:
    """A plan with two targets has two promises to keep; one must not be judged by the other's requests."""
    assert objective_of(expression)[5:] == (target, phase)
    assert parse_slo(expression) == objective_of(expression)


@pytest.mark.parametrize(("expression", "share"), SHARES)
def test_a_request_line_has_a_share_of_its_own(expression: str, share: float) -> None:
    """One slow request in a million fails an objective of 100 %: a share says how many may."""
    parsed = parse_slo(expression)
    assert isinstance(parsed, RequestObjective)
    assert parsed.share == pytest.approx(share)
    assert parsed.conditions == (("ttft_ms", "<=", 1),)
    assert is_per_request(expression)


def test_targets_and_phases_that_the_plan_has_not_are_refused() -> None:
    """An objective that judges nothing would pass for ever."""
    check_slo("[target=a phase=b] error_rate <= 1", ["a"], ["b"])
    with pytest.raises(PlanError, match="the plan has no target 'locl'; did you mean 'local'"):
        check_slo("[target=locl] error_rate <= 1", ["local", "other"], ["main"])
    with pytest.raises(PlanError, match="the plan has no phase 'x'; known: main"):
        check_slo("[phase=x] request: ttft_ms <= 1", ["local"], ["main"])


def test_a_precision_names_a_statistic_and_a_share() -> None:
    """`--until` ends a run: what it asks for has to be understood exactly, or the run never ends."""
    assert precision_of("ttft_ms.p99 +-5%")[1:] == ("ttft_ms", "p99", 0.05)
    assert precision_of(" itl_ms.mean±0.5 % ")[1:] == ("itl_ms", "mean", 0.005)
    for wrong in ("ttft_ms.p99", "ttft_ms.p99 +-5", "ttft_ms.p99 <= 5%", "ttft_ms.p99 +-0%", "ttft_ms.p99 +-200%"):
        with pytest.raises(PlanError, match=r"is not METRIC.STATISTIC \+-SHARE%, such as 'ttft_ms.p99 \+-5%'"):
            precision_of(wrong)
    with pytest.raises(PlanError, match="there is no 'ttf_ms'; did you mean 'ttft_ms'"):
        precision_of("ttf_ms.p99 +-5%")
    with pytest.raises(PlanError, match="error_rate is one number, a distribution is wanted"):
        precision_of("error_rate +-5%")


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
    (parsed,) = request_objectives([expression])
    assert parsed.conditions == (("ttft_ms", "<=", 800), ("tpot_ms", "<", 40), ("e2e_tps", ">=", 10))


def test_the_request_lines_of_a_plan_are_found_in_their_order() -> None:
    """Their numbers are what their requests are counted by."""
    plan = ("request: ttft_ms <= 800", "error_rate <= 0.1", "request: tpot_ms <= 40 and e2e_ms < 9000")
    assert [parsed.expression for parsed in request_objectives(plan)] == [plan[0], plan[2]]
    assert request_objectives(("error_rate <= 0.1",)) == []


def test_every_metric_and_statistic_can_be_asked_for() -> None:
    for metric in METRICS:
        for statistic in STATISTICS:
            assert objective_of(f"{metric}.{statistic} <= 1")[1:3] == (metric, statistic)
    for total in TOTALS:
        assert objective_of(f"{total} <= 1")[1:3] == (total, None)
    for metric in PER_REQUEST:
        assert request_objectives([f"request: {metric} <= 1"])[0].conditions == ((metric, "<=", 1),)


@given(st.floats(0, 1e9), st.sampled_from(sorted(OPERATORS)))
def test_a_bound_holds_or_fails_exactly_where_it_lies(bound: float, comparison: str) -> None:
    objective = objective_of(f"ttft_ms.p99 {comparison} {bound!r}")
    assert objective.bound == bound
    assert objective.holds(bound) is ("=" in comparison)
    assert objective.holds(bound + 1) is (">" in comparison)
    assert objective.holds(bound - 1) is ("<" in comparison)
