"""The search for the load that a server bears: on servers whose capacity is known, and on answers made by hand."""

from __future__ import annotations

import pytest

from llm_latency_lens.collectors.capacity import (
    Answer,
    Next,
    Point,
    Range,
    State,
    answer_of,
    knee_of,
    next_load,
    peak_of,
)
from tests.support_servers import SERVERS, Sweep, batching, mmk_p90

RANGE = Range(1, 100)


def searched(range_: Range, capacity: float, *, wrong: dict[int, State] | None = None) -> tuple[Answer, list[Point]]:
    """A search on a server that passes up to `capacity`; `wrong` are verdicts by number of the point."""
    points: list[Point] = []
    while (wanted := next_load(points, range_)) is not None:
        assert len(points) < 50, points
        right: State = "PASS" if wanted.value <= capacity else "FAIL"
        points.append(Point(wanted.value, (wrong or {}).get(len(points), right), limited_by="ttft_ms.p99 <= 1"))
    return answer_of(points, range_), points


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SERVERS if name != "M/M/1"])  # it takes 15 s a seed: in the bench
def test_the_answer_is_within_the_precision_of_the_true_capacity(name: str) -> None:
    """What the sweep exists for; the numbers of 100 seeds are printed by benches/sweep_accuracy.py."""
    server = SERVERS[name]
    near = covered = 0
    for seed in range(5):
        sweep = Sweep(server.latencies, server.bound_s, server.range_, 1_000 + seed, statistic=server.statistic)
        answer = sweep.run()
        low, high = answer.ci95
        near += answer.value is not None and abs(answer.value / server.capacity - 1) <= 0.05
        covered += low is not None and high is not None and low <= server.capacity <= high
    assert near >= 4
    assert covered >= 4


def test_the_simulated_servers_are_what_the_formulas_say() -> None:
    """A wrong truth would make a wrong search look right: known values of M/M/1, whose response is exponential."""
    assert mmk_p90(1, 10.0) == pytest.approx(2.302585 / (20 - 10), rel=1e-6)
    assert mmk_p90(4, 1e-6) == pytest.approx(2.302585 * 0.05, rel=1e-4)


def test_the_bracket_holds_the_capacity_and_is_as_narrow_as_asked() -> None:
    """Doubling, then bisection: few points, whatever the capacity."""
    for capacity in (1.01, 3.7, 17.0, 64.0, 99.0):
        answer, points = searched(RANGE, capacity)
        low, high = answer.ci95
        assert low is not None
        assert high is not None
        assert answer.state == "FOUND"
        assert low <= capacity <= high <= low * 1.05**2 * 1.0001
        assert answer.limited_by == "ttft_ms.p99 <= 1"
        assert len(points) <= 15


def test_concurrency_is_searched_in_integers() -> None:
    """There is no half request in flight; neighbours end the search, and the lower one is the answer."""
    answer, points = searched(Range(1, 64, integers=True), 5)
    assert (answer.value, answer.ci95, answer.state) == (5, (5, 6), "FOUND")
    assert all(point.value == int(point.value) for point in points)


@pytest.mark.parametrize("number", [3, 5, 7, 8, 9])
@pytest.mark.parametrize("state", ["PASS", "FAIL"])
def test_one_wrong_verdict_does_not_move_the_answer(number: int, state: State) -> None:
    """One point in twenty may be judged wrongly, and bisection alone never looks back."""
    answer, _ = searched(RANGE, 17.0, wrong={number: state})
    low, high = answer.ci95
    assert low is not None
    assert high is not None
    assert low <= 17.0 <= high


def test_a_range_that_is_too_low_or_too_high_is_said() -> None:
    """ABOVE_RANGE and BELOW_RANGE are answers: the range has to be changed."""
    above, below = searched(RANGE, 1e9)[0], searched(RANGE, 0.1)[0]
    assert (above.value, above.ci95, above.state) == (100, (100, None), "ABOVE_RANGE")
    assert (below.value, below.ci95, below.state) == (None, (None, 1), "BELOW_RANGE")


def test_the_client_is_never_taken_for_the_server() -> None:
    """Loads above 20 are more than this client can send: the server's capacity is not known, and not called FOUND."""
    sweep = Sweep(batching(), 0.03, Range(1, 200, integers=True), 1, client_limit=20)
    answer = sweep.run()
    assert answer.state == "CLIENT_LIMITED"
    assert answer.value is not None
    assert 18 <= answer.value <= 20


def test_a_client_limit_above_the_capacity_does_not_matter() -> None:
    """The server fails below it: that is found."""
    server = SERVERS["batching"]
    answer = Sweep(server.latencies, server.bound_s, server.range_, 1, client_limit=60).run()
    assert answer.state == "FOUND"
    assert answer.value == pytest.approx(server.capacity, rel=0.05)


def test_loads_that_stay_undecided_are_measured_again_and_then_left() -> None:
    """A statistic that never decides must end the search, and is not called FOUND."""
    points: list[Point] = []
    while (wanted := next_load(points, RANGE)) is not None:
        assert len(points) < 60
        state: State = "PASS" if wanted.value < 10 else "FAIL" if wanted.value > 20 else "UNDECIDED"
        points.append(Point(wanted.value, state))
    answer = answer_of(points, RANGE)
    low, high = answer.ci95
    assert low is not None
    assert high is not None
    assert answer.state == "UNDECIDED"
    assert low < 10 < 20 < high


def test_a_search_that_never_decides_at_all_ends() -> None:
    """No SLO may have a value, for example where every reply is too short for it."""
    points: list[Point] = []
    while (wanted := next_load(points, RANGE)) is not None:
        assert len(points) < 60
        points.append(Point(wanted.value, "UNDECIDED"))
    assert answer_of(points, RANGE).state == "UNDECIDED"


def test_a_sweep_goes_on_from_its_finished_points() -> None:
    """After a SIGKILL, what was measured is not measured again: the next load follows from the points alone."""
    _, points = searched(RANGE, 17.0)
    for count in range(len(points)):
        wanted = next_load(points[:count], RANGE)
        assert wanted is not None
        assert wanted.value == points[count].value
    assert next_load([], RANGE) == Next(1, 1)


def test_the_knee_is_where_the_curve_bends() -> None:
    """Latency of an M/M/1 queue: flat at first, then steep; the interval shows how sure the place is."""
    loads = [2.0 * k for k in range(1, 10)]
    latencies = [1 / (20 - load) for load in loads]
    points = [
        Point(load, "PASS", latency=each, latency_low=each * 0.9, latency_high=each * 1.1)
        for load, each in zip(loads, latencies, strict=True)
    ]
    knee = knee_of(points)
    assert knee is not None
    assert knee.value == 14
    assert knee.ci95[0] <= 14 <= knee.ci95[1]
    assert knee == knee_of(points[::-1])
    assert knee_of(points[:3]) is None
    flat = [Point(load, "PASS", latency=1.0) for load in loads]
    assert knee_of(flat) is None


def test_the_peak_is_the_load_with_the_highest_goodput() -> None:
    """Beyond it, more load yields fewer good replies."""
    points = [Point(value, "PASS", goodput_per_s=good) for value, good in ((1, 1.0), (2, 1.9), (4, 1.2))]
    peak = peak_of(points)
    assert peak is not None
    assert (peak.value, peak.goodput_per_s) == (2, 1.9)
    assert peak_of([Point(1, "PASS")]) is None
