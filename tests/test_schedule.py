"""Schedules are pure functions of (seed, phase, slot); their times follow the rate exactly and chance without bias."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.load import arrivals
from llm_latency_lens.engine.load.arrivals import LEAF, ROOT, Arrivals
from llm_latency_lens.engine.load.models import planned_slots, schedule_of
from llm_latency_lens.engine.load.rate import integral_of
from llm_latency_lens.engine.load.schedule import Closed, Schedule
from llm_latency_lens.engine.plan.plan import SECOND, Load, Phase, Plan, Shape, Workload
from tests.support_chance import anderson_darling, gap_cdf, kolmogorov_smirnov
from tests.support_workload import target

WEEK = 7 * 86_400 * SECOND


def shape(seconds: float, start: float, end: float | None = None, curve: Any = "linear") -> Shape:
    return Shape(duration_ns=int(seconds * SECOND), start=start, end=start if end is None else end, curve=curve)


def phase(*shapes: Shape, requests: int | None = None, ends: bool = True, **load: Any) -> Phase:
    total = sum(each.duration_ns for each in shapes)
    load = {"model": "open"} | load
    return Phase(
        name="p", load=Load(shapes=shapes, **load), duration_ns=total if ends and total else None, requests=requests
    )


def opened(*shapes: Shape, seed: int = 1, index: int = 0, **keys: Any) -> Schedule:
    return schedule_of(phase(*shapes, **keys), seed=seed, index=index)


def closed(*shapes: Shape, **keys: Any) -> Closed:
    found = schedule_of(phase(*shapes, model="closed", **keys), seed=1, index=0)
    assert isinstance(found, Closed)
    return found


def offsets(
    schedule: Schedule, count: int | None = None, worker: int = 0, workers: int = 1, first: int = 0
) -> list[int]:
    return [offset for _, offset in islice(schedule.share(worker, workers, first), count)]


ARRIVALS: list[dict[str, Any]] = [
    {"arrivals": "constant"},
    {"arrivals": "poisson"},
    {"arrivals": "gamma", "gamma_shape": 0.3},
    {"arrivals": "gamma", "gamma_shape": 5.0},
]
RATES = {
    "flat": (shape(2, 300),),
    "a third": (shape(900, 1 / 3),),
    "rising from nothing": (shape(2, 0, 600),),
    "falling to nothing": (shape(2, 600, 0),),
    "hardly rising": (shape(2, 300, 300.0001),),
    "growing": (shape(2, 10, 900, "exponential"),),
    "shrinking": (shape(2, 900, 1, "exponential"),),
    "steps with a pause": (shape(0.5, 100), shape(0.7, 0), shape(0.3, 1000 / 3), shape(0.1, 7)),
    "spike": (shape(1, 50), shape(0.2, 2000), shape(1, 50)),
    "all together": (shape(1, 0, 200), shape(1, 200, 20, "exponential"), shape(0.5, 0), shape(1, 300, 100)),
}


def loads() -> list[Any]:
    """Every rate with every kind of chance."""
    return [
        pytest.param(shapes, chance, id=f"{name}-{chance['arrivals']}{chance.get('gamma_shape', '')}")
        for name, shapes in RATES.items()
        for chance in ARRIVALS
    ]


# --- every load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shapes", "chance"), loads())
def test_a_share_is_planned_in_order_and_within_the_phase(shapes: tuple[Shape, ...], chance: dict[str, Any]) -> None:
    made = opened(*shapes, **chance)
    slots = list(made.share(0, 1))
    assert [slot for slot, _ in slots] == list(range(len(slots)))
    assert made.planned == len(slots) > 0
    times = [offset for _, offset in slots]
    assert all(a <= b for a, b in pairwise(times))
    assert times[0] >= 0
    assert times[-1] < sum(each.duration_ns for each in shapes)


@pytest.mark.parametrize(("shapes", "chance"), loads())
def test_the_union_of_the_shares_is_the_same_for_any_number_of_workers(
    shapes: tuple[Shape, ...], chance: dict[str, Any]
) -> None:
    made = opened(*shapes, **chance)
    whole = list(made.share(0, 1))
    # 300: more workers than arrivals in a leaf
    for workers in (3, 300) if shapes is RATES["flat"] else (2, 7):
        shares = [list(made.share(worker, workers)) for worker in range(workers)]
        assert sorted(slot for share in shares for slot in share) == whole
        assert all(slot % workers == worker for worker, share in enumerate(shares) for slot, _ in share)


@given(
    load=st.sampled_from([each.values for each in loads()]),
    seed=st.integers(0, 1 << 70),
    workers=st.integers(1, 9),
    first=st.integers(0, 700),
)
@settings(max_examples=25, deadline=None)
def test_a_share_resumes_where_it_stopped(load: Any, seed: int, workers: int, first: int) -> None:
    shapes, chance = load
    for worker in range(workers):
        whole = list(opened(*shapes, seed=seed, **chance).share(worker, workers))
        rest = list(opened(*shapes, seed=seed, **chance).share(worker, workers, first))
        assert rest == [slot for slot in whole if slot[0] >= first]


@pytest.mark.parametrize("chance", ARRIVALS)
def test_a_phase_of_requests_ends_with_them(chance: dict[str, Any]) -> None:
    endless = opened(shape(0, 50), requests=301, **chance)
    assert endless.planned == 301
    assert len(offsets(endless)) == 301
    assert len(list(endless.share(2, 4))) == 75
    assert opened(shape(2, 50), requests=10_000, **chance).planned == len(
        offsets(opened(shape(2, 50), requests=10_000, **chance))
    )


@pytest.mark.parametrize("chance", ARRIVALS)
def test_a_slot_far_away_is_found_without_walking_there(chance: dict[str, Any]) -> None:
    """Walking over 1e12 arrivals would take days."""
    endless = opened(shape(0, 1e6), requests=10**13, **chance)
    (slot, offset), *_ = islice(endless.share(3, 8, 10**12), 2)
    assert slot == 10**12 + 3
    assert offset == pytest.approx(10**12 * 1000, rel=1e-4)


def test_seeds_and_phases_have_arrivals_of_their_own() -> None:
    poisson = {"arrivals": "poisson"}
    seen = {tuple(offsets(opened(shape(1, 50), seed=s, index=i, **poisson), 5)) for s in range(5) for i in range(5)}
    assert len(seen) == 25


def test_another_rate_only_stretches_the_same_arrivals() -> None:
    """Common random numbers: two rates are compared without the noise between two draws."""
    slow = offsets(opened(shape(100, 10), arrivals="poisson"), 500)
    fast = offsets(opened(shape(100, 20), arrivals="poisson"), 500)
    assert all(abs(a - 2 * b) <= 2 for a, b in zip(slow, fast, strict=True))


# --- constant -----------------------------------------------------------------------------------------------------

EXACT = [
    (1.0, Fraction(1), "whole"),
    (7.0, Fraction(7), "a period that is no integer of ns"),
    (0.1, Fraction(1, 10), "no float is 0.1"),
    (999.9, Fraction(9999, 10), "nor 999.9"),
    (float(Fraction(5, 60)), Fraction(5, 60), "5/m"),
    (100_000.0, Fraction(100_000), "fast"),
    (2.0**-20, Fraction(1, 1 << 20), "slow"),
]


@pytest.mark.parametrize(("rate", "exactly", "why"), EXACT)
def test_constant_arrivals_do_not_drift(rate: float, exactly: Fraction, why: str) -> None:
    endless = opened(shape(0, rate), requests=1 << 60)
    for slot in (each for each in (0, 1, 2, 1000, 10**9 + 7, 10**12 + 1) if each / rate < 4e9):  # 126 years
        assert next(endless.share(0, 1, slot)) == (slot, int(slot * SECOND / exactly)), why


def test_a_slot_at_the_very_end_belongs_to_no_phase() -> None:
    assert opened(shape(10, 100)).planned == 1000
    assert offsets(opened(shape(10, 100)))[-1] == 9_990_000_000
    assert opened(Shape(duration_ns=10 * SECOND + 1, start=100, end=100)).planned == 1001


def test_segments_join_without_a_gap_or_a_doubled_slot() -> None:
    """Cut in two, a constant load is the same load."""
    whole = opened(shape(2000, 1 / 3))
    cut = opened(shape(700, 1 / 3), shape(0.1, 1 / 3), shape(1299.9, 1 / 3))
    assert offsets(whole) == offsets(cut)


@pytest.mark.parametrize("shapes", list(RATES.values()), ids=list(RATES))
def test_a_changing_rate_follows_its_integral(shapes: tuple[Shape, ...]) -> None:
    """Slot i comes when the integral is i, within the ns: one ns before it is less, then it is at least that."""
    made, begin, before = offsets(opened(*shapes)), 0, Fraction(0)
    place = 0
    for each in shapes:
        while place < len(made) and made[place] < begin + each.duration_ns:
            early, late = (before + integral_of(each, made[place] - begin + step) for step in (-1, 2))
            assert float(early) - 1e-9 <= place <= float(late) + 1e-9
            place += 1
        begin, before = begin + each.duration_ns, before + integral_of(each, each.duration_ns)
    assert place == len(made)


def test_a_ramp_to_1000_per_second_follows_its_integral_to_the_slot() -> None:
    made = offsets(opened(shape(20, 0, 1000)))
    assert len(made) == 10_000
    for second in range(1, 21):
        assert sum(1 for offset in made if offset < second * SECOND) == pytest.approx(25 * second**2, abs=1)


def test_a_slope_of_almost_nothing_is_no_noise() -> None:
    """The textbook solution subtracts two nearly equal floats here, and is off by microseconds."""
    week = Shape(duration_ns=WEEK, start=1000.0, end=1000.001)
    slot = 500_000_000
    (_, offset) = next(opened(week).share(0, 1, slot))
    assert integral_of(week, offset - 1) <= slot <= integral_of(week, offset + 1)


# --- chance -------------------------------------------------------------------------------------------------------

SHAPES = [0.5, 1, 2, 4]


def gaps_of(shape_: float, key: str, first: int, count: int) -> list[float]:
    made = Arrivals(key, shape_)
    leaves = range(first // LEAF, (first + count) // LEAF)
    times = [time for leaf in leaves for time in made.leaf(leaf)]
    return [b - a for a, b in pairwise(times)]


@pytest.mark.parametrize("shape_", SHAPES)
@pytest.mark.parametrize("first", [0, ROOT - 20 * LEAF], ids=["beginning", "across a root"])
def test_gaps_have_their_distribution(shape_: float, first: int) -> None:
    cdf = gap_cdf(shape_)
    uniforms = [cdf(gap) for gap in gaps_of(shape_, "fit", first, 40 * LEAF)]
    assert kolmogorov_smirnov(uniforms) < 1
    assert anderson_darling(uniforms) < 1


@pytest.mark.parametrize("shape_", SHAPES)
def test_no_more_seeds_are_rejected_than_chance_allows(shape_: float) -> None:
    """Of 100 tests at 1 %, 1 rejects; more than 5 would happen once in 2000 times."""
    cdf = gap_cdf(shape_)
    samples = [[cdf(gap) for gap in gaps_of(shape_, f"seed/{seed}", 0, 2 * LEAF)] for seed in range(100)]
    assert sum(kolmogorov_smirnov(uniforms) > 1 for uniforms in samples) <= 5
    assert sum(anderson_darling(uniforms) > 1 for uniforms in samples) <= 5


@pytest.mark.parametrize("shape_", SHAPES)
@pytest.mark.parametrize("lag", [1, 2, LEAF])
def test_gaps_do_not_know_each_other(shape_: float, lag: int) -> None:
    gaps = gaps_of(shape_, "lag", 0, 60 * LEAF)
    n = len(gaps) - lag
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    together = sum((gaps[i] - mean) * (gaps[i + lag] - mean) for i in range(n)) / n
    assert abs(together / variance) * n**0.5 < 3.3


@pytest.mark.parametrize("level", range(arrivals.LEVELS + 1))
def test_sums_over_any_size_vary_as_independent_gaps_do(level: int) -> None:
    """Drawn from above and divided, the span of a node must still be Gamma(size), whatever its place in the tree."""
    size = LEAF * arrivals.FAN**level
    spans = []
    for seed in range(250):
        made = Arrivals(f"spans/{seed}", 1.0)
        last = size // LEAF * 3
        spans.append((made.leaf(last - 1)[-1] - made.leaf(last - 1 - size // LEAF)[-1] - size) / size**0.5)
    n = len(spans)
    assert abs(sum(spans)) / n**0.5 < 3.3
    assert sum(span**2 for span in spans) / n == pytest.approx(1, abs=3.3 * (2 / n) ** 0.5)


def test_poisson_counts_are_poisson() -> None:
    """Counts per 10 expected: as variable as their mean, at all places."""
    made = offsets(opened(shape(2000, 10), arrivals="poisson"))
    counts = [0] * 2000
    for offset in made:
        counts[offset // SECOND] += 1
    mean = sum(counts) / 2000
    assert mean == pytest.approx(10, abs=3.3 * (10 / 2000) ** 0.5)
    assert sum((count - mean) ** 2 for count in counts) / 1999 / mean == pytest.approx(1, abs=3.3 * 0.0316)


@pytest.mark.parametrize("shapes", list(RATES.values()), ids=list(RATES))
def test_poisson_arrivals_on_any_rate_are_uniform_on_its_integral(shapes: tuple[Shape, ...]) -> None:
    total = float(sum(integral_of(each, each.duration_ns) for each in shapes))
    uniforms = []
    for seed in range(6):
        for offset in offsets(opened(*shapes, arrivals="poisson", seed=seed)):
            left, reached = offset, Fraction(0)
            for each in shapes:
                reached += integral_of(each, min(left, each.duration_ns))
                left = max(left - each.duration_ns, 0)
            uniforms.append(float(reached) / total)
    assert kolmogorov_smirnov(uniforms) < 1
    assert anderson_darling(uniforms) < 1


def test_shapes_from_almost_nothing_to_huge_hold_the_rate() -> None:
    for shape_ in (1e-3, 0.05, 1e3, 1e9, 1e300):
        made = Arrivals("edge", shape_)
        times = [time for leaf in range(40) for time in made.leaf(leaf)]
        assert all(a <= b for a, b in pairwise(times))
        spread = 6 * (1 / shape_ / len(times)) ** 0.5
        assert times[-1] / len(times) == pytest.approx(1, abs=spread + 1e-6)


# --- replay -------------------------------------------------------------------------------------------------------

TIMES = [0, 5, 5, 5, 90, 2 * SECOND, 2 * SECOND + 1, 7 * SECOND]


@pytest.mark.parametrize(
    ("seconds", "requests", "expected", "why"),
    [
        (0, None, TIMES, "to the end of the trace"),
        (2, None, TIMES[:5], "cut by the phase: a slot at its end is none"),
        (0, 3, TIMES[:3], "cut by its requests"),
        (3, 100, TIMES[:7], "whichever is first"),
    ],
)
def test_a_replay_has_the_times_of_its_trace(
    seconds: float, requests: int | None, expected: list[int], why: str
) -> None:
    made = schedule_of(
        phase(shape(seconds, 0), model="replay", requests=requests), seed=1, index=0, timestamps=lambda: iter(TIMES)
    )
    assert list(made.share(0, 1)) == list(enumerate(expected)), why
    for workers in (2, 3):
        union = sorted(slot for worker in range(workers) for slot in made.share(worker, workers))
        assert union == list(enumerate(expected))
    assert list(made.share(1, 2, 2)) == [(i, at) for i, at in enumerate(expected) if i % 2 and i >= 2]


# --- closed -------------------------------------------------------------------------------------------------------

CLOSED = {
    "flat": (shape(2e-6, 9),),
    "no duration": (shape(0, 9),),
    "up": (shape(1e-6, 0, 40),),
    "down": (shape(1e-6, 40, 0),),
    "slow": (shape(2e-6, 1, 3),),
    "faster than time": (shape(1e-8, 0, 500),),
    "growing": (shape(1e-6, 1, 100, "exponential"),),
    "shrinking": (shape(1e-6, 100, 1, "exponential"),),
    "steps": (shape(5e-7, 1), shape(5e-7, 8), shape(2e-7, 8), shape(5e-7, 0), shape(3e-7, 2)),
    "ramp and hold": (shape(5e-7, 0, 9), shape(5e-7, 9), shape(5e-7, 9, 2)),
}


@pytest.mark.parametrize("shapes", list(CLOSED.values()), ids=list(CLOSED))
def test_the_shares_are_the_limit_at_every_moment(shapes: tuple[Shape, ...]) -> None:
    made = closed(*shapes, requests=5)
    for offset in range(sum(each.duration_ns for each in shapes) + 50):
        whole = made.limit(offset, 0, 1)
        for workers in (2, 5):
            shares = [made.limit(offset, worker, workers) for worker in range(workers)]
            assert sum(shares) == whole
            assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("shapes", list(CLOSED.values()), ids=list(CLOSED))
def test_the_next_change_is_the_next_change(shapes: tuple[Shape, ...]) -> None:
    made, fresh = closed(*shapes, requests=5), closed(*shapes, requests=5)
    end = sum(each.duration_ns for each in shapes) + 50
    limits = [fresh.limit(offset, 0, 1) for offset in range(end)]
    following: int | None = None
    expected: list[int | None] = []
    for offset in range(end - 1, -1, -1):
        expected.append(following)
        if offset and limits[offset] != limits[offset - 1]:
            following = offset
    expected.reverse()
    assert [made.next_change(offset) for offset in range(end)] == expected


def test_a_ramp_of_concurrency_is_at_the_nearest_whole_number() -> None:
    made = closed(shape(10, 1, 11))
    at = {0: 1, 0.49: 1, 0.5: 2, 1: 2, 5: 6, 9.49: 10, 9.5: 11, 10: 11, 1000: 11}
    assert {second: made.limit(int(second * SECOND), 0, 1) for second in at} == at
    assert made.next_change(0) == SECOND // 2
    assert made.next_change(10 * SECOND) is None


def test_closed_slots_are_due_at_once_and_end_with_the_requests() -> None:
    assert list(closed(shape(0, 4), requests=7).share(1, 3)) == [(1, 0), (4, 0)]
    assert list(closed(shape(0, 4), requests=7).share(1, 3, 2)) == [(4, 0)]
    assert list(islice(closed(shape(9, 4)).share(1, 3, 2), 2)) == [(4, 0), (7, 0)]
    assert closed(shape(9, 4)).planned is None


# --- planned ------------------------------------------------------------------------------------------------------


def plan(*phases: Phase, **workload: Any) -> Plan:
    return Plan(name="p", targets=(target(),), workload=Workload(**workload), phases=phases, seed=5)


def test_what_is_planned_is_known_before_where_it_can_be(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": i * 10, "input_length": 9, "output_length": 9} for i in range(5000)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table: list[tuple[Phase, dict[str, Any], int | None, str]] = [
        (phase(shape(10, 50)), {}, 500, "rate x duration"),
        (phase(shape(10, 50), requests=20), {}, 20, "requests first"),
        (phase(shape(10, 4), model="closed"), {}, None, "only time ends it"),
        (phase(shape(10, 4), model="closed", requests=9), {}, 9, "a closed loop of requests"),
        (phase(shape(10, 5), model="partly_open"), {"kind": "sessions"}, None, "the turns are not known"),
        (phase(shape(0, 0), model="replay"), {"kind": "trace", "path": str(trace)}, 5000, "the whole trace"),
        (phase(shape(1, 0), model="replay"), {"kind": "trace", "path": str(trace)}, 100, "what is due in the phase"),
    ]
    for each, workload, expected, why in table:
        assert planned_slots(plan(each, **workload), 0) == expected, why
    poisson = phase(shape(10, 50), arrivals="poisson")
    counted = len(list(schedule_of(poisson, seed=5, index=1).share(0, 1)))
    assert planned_slots(plan(phase(shape(1, 1)), poisson), 1) == counted
