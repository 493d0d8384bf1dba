"""What a sweep is asked for, from the options and the plan. Everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...collectors.sweep import Over, Wanted
from ...engine.errors import PlanError
from ...engine.plan.plan import IN_FLIGHT_MAX, RATE_MAX_PER_S, Plan
from ...engine.plan.units import rate_per_s
from ...engine.planfile.reading import read_document
from ..options import plan_from

DURATION: Final = "2m"  # of a point, at most, where nothing says
_EXAMPLE: Final = "--over rate=1:100, or --over concurrency=1:64"


def wanted_of(over: str | None, grid: str | None, *, precision: float, require: str | None) -> Wanted:
    """From `--over rate=LOW:HIGH` and `--grid V,V,...`. Raises PlanError."""
    if not over:
        raise PlanError(f"a sweep needs the load that it varies: {_EXAMPLE}")
    name, _, bounds = over.partition("=")
    if name not in ("rate", "concurrency"):
        raise PlanError(f"--over {over!r}: {name!r} is no load; {_EXAMPLE}")
    kind: Over = "rate" if name == "rate" else "concurrency"
    values = tuple(load_of(kind, part, "--grid") for part in grid.split(",")) if grid is not None else ()
    if values and len(set(values)) < 2:
        raise PlanError(f"--grid {grid!r} needs two different loads at least, such as 1,2,4,8")
    if len(set(values)) < len(values):
        raise PlanError(f"--grid {grid!r} names a load twice; each is measured once")
    if bounds:
        low, high = _bounds(kind, over, bounds)
    elif values:
        low, high = min(values), max(values)
    else:
        raise PlanError(f"--over {over!r} has no range; {_EXAMPLE}")
    outside = [value for value in values if not low <= value <= high]
    if outside:
        raise PlanError(f"--grid {grid!r}: {outside[0]:g} is outside of {name}={bounds}")
    return Wanted(
        over=kind,
        low=low,
        high=high,
        precision=precision,
        grid=values,
        require=None if require is None else load_of(kind, require, "--require"),
    )


def _bounds(kind: Over, over: str, bounds: str) -> tuple[float, float]:
    parts = bounds.split(":")
    if len(parts) != 2:
        raise PlanError(f"--over {over!r} is not {kind}=LOW:HIGH; {_EXAMPLE}")
    low, high = (load_of(kind, part, "--over") for part in parts)
    if low >= high:
        raise PlanError(f"--over {over!r}: LOW must be below HIGH, got {low:g} and {high:g}")
    return low, high


def load_of(kind: Over, text: str, option: str) -> float:
    try:
        value = rate_per_s(text) if kind == "rate" else float(int(text))
    except (ValueError, OverflowError):
        what = "a rate per second, such as 50 or 600/m" if kind == "rate" else "a number of requests in flight"
        raise PlanError(f"{option} {text!r} is not {what}") from None
    most = RATE_MAX_PER_S if kind == "rate" else IN_FLIGHT_MAX
    if not 0 < value <= most:
        raise PlanError(f"{option} {text!r} must be above 0 and at most {most:,.0f}")
    return value


def plan_of(plan_path: str | None, flags: Mapping[str, Any], wanted: Wanted) -> Plan:
    """The plan at the lowest load: an unmeasured warm-up at most, then one measured phase. Raises PlanError."""
    for name in ("rate", "concurrency"):
        if flags.get(name):
            raise PlanError(f"--{name} and --over both set the load; leave out --{name}")
    document: dict[str, Any] = read_document(plan_path)[0] if plan_path else {}
    _refuse_loads(document)
    given = {"duration", "requests"} & ({*document} | {*_measured(document)} | {name for name in flags if flags[name]})
    low = int(wanted.low) if wanted.over == "concurrency" else wanted.low
    extra = {wanted.over: f"{low!r}"} | ({} if given else {"duration": DURATION})
    plan = plan_from(plan_path, {**flags, **extra})
    if plan.workload.kind == "trace":
        raise PlanError("a trace has a load of its own, which --over cannot vary; take its prompts from a file instead")
    before = plan.phases[:-1]
    if (
        not plan.phases[-1].measure
        or len(before) > 1
        or any(phase.measure or not phase.duration_ns for phase in before)
    ):
        raise PlanError(
            "a sweep makes its own phases: the plan may have one measured phase, and before it a warm-up with a duration "
            "(measure: false)"
        )
    if not plan.slo:
        raise PlanError("a sweep needs an objective that a load meets or misses: --slo 'ttft_ms.p99 <= 500'")
    return plan


def _refuse_loads(document: Mapping[str, Any]) -> None:
    """Loads that change over time, several of them, and that of a probe."""
    if document.get("probe"):
        raise PlanError("the plan is one for `lens probe` (key probe), which has a load of its own; leave out probe")
    phases = document.get("phases")
    measured = _measured(document) if isinstance(phases, list) else document
    if isinstance(phases, list):
        count = sum(isinstance(phase, dict) and phase.get("measure", True) is not False for phase in phases)
        if count > 1:
            raise PlanError(
                f"the plan measures {count} phases, and --over sets the load of one; leave one measured phase"
            )
    load = measured.get("load")
    if not isinstance(load, dict):
        return
    if load.get("replay"):
        raise PlanError("the plan's load replays a trace, which --over cannot vary; leave out load.replay")
    for name in ("rate", "concurrency"):
        if isinstance(load.get(name), dict):
            shown = ", ".join(str(key) for key in load[name])
            raise PlanError(f"the plan's {name} changes over time ({shown}), and --over sets it; leave out load.{name}")


def _measured(document: Mapping[str, Any]) -> dict[str, Any]:
    """The measured phase of a document; empty where it has none of its own."""
    phases = document.get("phases")
    listed = phases if isinstance(phases, list) else []
    return next((each for each in listed if isinstance(each, dict) and each.get("measure", True) is not False), {})
