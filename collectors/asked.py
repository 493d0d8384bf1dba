"""What a plan asked for beside what came of it: prompt lengths, output lengths, prompt caches, random arrivals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..engine.load.models import model_of
from ..engine.plan.plan import SECOND, Phase, Plan
from ..engine.runs.manifest import PhaseTimes
from .series import Series, Tally
from .statistics import share

DRAW_BOUND: Final = 0.05  # from this deviation on, the draw is named


def asks_for_shared_prefixes(plan: Plan) -> bool:
    """Whether prompts that come from the provider's cache are what the plan wants."""
    return plan.workload.prefix == "shared" or plan.workload.kind in ("sessions", "trace")


def prompt_length_ratio(series: Series) -> float | None:
    """Measured over asked prompt tokens, where the workload asks for a length and the provider counts."""
    return share(series.tally[Tally.MEASURED_INPUT], series.tally[Tally.ASKED_INPUT])


def draws(phases: Sequence[Phase], times: Sequence[PhaseTimes]) -> str:
    """Where chance drew noticeably more or fewer arrivals than the plan's rate, in words; empty where it did not."""
    found = []
    for phase, each in zip(phases, times, strict=True):
        load, nominal = phase.load, _nominal(phase)
        if not phase.measure or load.arrivals == "constant" or each.planned is None or not nominal:
            continue
        if abs(each.planned / nominal - 1) > DRAW_BOUND:
            seconds = (phase.duration_ns or 0) / SECOND
            found.append(
                f"the {load.arrivals} arrivals of {phase.name} drew {each.planned} requests in {seconds:g} s, "
                f"{each.planned / seconds:.1f}/s for a nominal {nominal / seconds:.1f}/s"
            )
    return "; ".join(found)


def _nominal(phase: Phase) -> float | None:
    """The integral of an open loop's rate over its time, where time alone ends it."""
    shapes = phase.load.shapes
    if not model_of(phase.load).has_level or phase.requests is not None or phase.duration_ns is None:
        return None
    if not model_of(phase.load).is_open or any(shape.curve != "linear" for shape in shapes):
        return None
    return sum((shape.start + shape.end) / 2 * shape.duration_ns / SECOND for shape in shapes)
