"""What a slot's time costs a worker, ahead of its slot; what resuming far into a phase costs; what limits cost a request.

A worker at 10,000 requests/s has 100 us for a request; its place in time is one part of it.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from llm_latency_lens.engine.load.limits import limits_of
from llm_latency_lens.engine.load.models import schedule_of
from llm_latency_lens.engine.plan.plan import SECOND, Load, Phase, Plan, Shape, Target, Workload

SLOTS = 20_000
DAYS_NS = 14 * 86_400 * SECOND
LOADS: dict[str, dict[str, Any]] = {
    "constant": {"arrivals": "constant"},
    "poisson": {"arrivals": "poisson"},
    "gamma 0.5": {"arrivals": "gamma", "gamma_shape": 0.5},
}
SHAPES = {
    "flat": Shape(duration_ns=DAYS_NS, start=5000, end=5000),
    "linear": Shape(duration_ns=DAYS_NS, start=0, end=5000),
    "exponential": Shape(duration_ns=DAYS_NS, start=1, end=5000, curve="exponential"),
}


def phase(shape: Shape, load: dict[str, Any]) -> Phase:
    return Phase(name="p", load=Load(model="open", shapes=(shape,), **load), duration_ns=DAYS_NS)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("load", LOADS)
def test_slots(benchmark: Any, load: str, shape: str, workers: int) -> None:
    slots = schedule_of(phase(SHAPES[shape], LOADS[load]), seed=1, index=0).share(0, workers)
    benchmark.pedantic(lambda: sum(1 for _ in islice(slots, SLOTS)), rounds=5)
    benchmark.extra_info["us_per_slot"] = round(benchmark.stats["median"] / SLOTS * 1e6, 2)


@pytest.mark.parametrize("load", LOADS)
def test_resuming_after_ten_days(benchmark: Any, load: str) -> None:
    """The first slot of a share that has 4.3e9 arrivals behind it."""
    made = schedule_of(phase(SHAPES["flat"], LOADS[load]), seed=1, index=0)
    benchmark.pedantic(lambda: next(made.share(3, 8, 10 * 86_400 * 5000)), rounds=20)


@pytest.mark.parametrize("load", LOADS)
def test_counting_what_is_planned(benchmark: Any, load: str) -> None:
    """All arrivals of 14 days at 5000/s."""
    benchmark.pedantic(lambda: schedule_of(phase(SHAPES["flat"], LOADS[load]), seed=1, index=0).planned, rounds=20)


def test_limits(benchmark: Any) -> None:
    target = Target(name="t", provider="openai", base_url="", rpm=600_000.0, tpm=1e9)
    plan = Plan(name="p", targets=(target,), workload=Workload(), phases=())
    limiter = limits_of(plan, target, 0, 4)
    assert limiter is not None

    def requests() -> None:
        for i in range(SLOTS):
            limiter.take(i * 100_000, 800)
            limiter.settle(800, 650)

    benchmark.pedantic(requests, rounds=5)
    benchmark.extra_info["us_per_request"] = round(benchmark.stats["median"] / SLOTS * 1e6, 2)
