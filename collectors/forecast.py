"""What a plan will ask for, before it does: requests, tokens, time and money. Sends nothing.

Tokens are those of the first items that the workload will really send, times the number of requests. Output is counted
as if every reply were as long as its limit, so that the cost is an upper estimate; cached input is counted at full price.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeVar

import msgspec

from ..engine.load.models import planned_slots
from ..engine.plan.plan import SECOND, Phase, Plan, Timetable
from ..engine.workload import source_of
from ..engine.workload.source import limits_in
from .cost import Prices, prices_of

SAMPLE: Final = 512  # items of which the means are made; 3 % for lengths that spread by a third
DAY_S: Final = 86_400
PICO: Final = 1e12

Number = TypeVar("Number", int, float)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request, on average. `cost_usd` is None where a target's price is unknown."""

    input_tokens: float
    input_min: int
    input_max: int
    output_tokens: float  # at most, where limited
    output_limited: bool  # else a reply is as long as its model likes, and output_tokens is an assumption
    cost_usd: float | None
    price_date: str | None


class PhaseForecast(msgspec.Struct, frozen=True, kw_only=True):
    """One phase. `requests` is None where the server or the sessions decide, `duration_s` where only requests end it."""

    name: str
    measured: bool
    requests: int | None
    duration_s: float | None


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The complete plan; None for what cannot be known before. Of a probe everything is per day."""

    per: str  # run | day
    phases: tuple[PhaseForecast, ...]
    request: Asked
    requests: int | None
    input_tokens: int | None
    output_tokens: int | None  # at most
    cost_usd: float | None
    duration_s: float | None  # without the drain


def forecast(plan: Plan) -> Forecast:
    """What a run of the plan, or a day of its probe, will ask for. Raises PlanError for a workload that cannot be read."""
    request = _request(plan, prices_of(plan))
    probed = plan.probe.given and bool(plan.probe.timetables)
    phases = () if probed else tuple(_phase(plan, index, phase) for index, phase in enumerate(plan.phases))
    if probed:
        requests: int | None = round(sum(probes_per_day(table) for table in plan.probe.timetables))
        duration: float | None = DAY_S
    else:
        requests = _sum([phase.requests for phase in phases])
        duration = _sum([phase.duration_s for phase in phases])
    return Forecast(
        per="day" if probed else "run",
        phases=phases,
        request=request,
        requests=requests,
        input_tokens=None if requests is None else round(requests * request.input_tokens),
        output_tokens=None if requests is None else round(requests * request.output_tokens),
        cost_usd=None if requests is None or request.cost_usd is None else requests * request.cost_usd,
        duration_s=duration,
    )


def probes_per_day(table: Timetable) -> float:
    """The requests of one target of a probe, quiet hours left out."""
    quiet = {minute for begin, end in table.quiet for minute in _minutes(begin, end)}
    return (DAY_S - 60 * len(quiet)) * SECOND / table.every_ns


def _minutes(begin: int, end: int) -> list[int]:
    return [*range(begin, end)] if begin < end else [*range(begin, DAY_S // 60), *range(end)]


def _phase(plan: Plan, index: int, phase: Phase) -> PhaseForecast:
    duration = None if phase.duration_ns is None else phase.duration_ns / SECOND
    return PhaseForecast(
        name=phase.name, measured=phase.measure, requests=planned_slots(plan, index), duration_s=duration
    )


def _request(plan: Plan, prices: Prices) -> Asked:
    """The mean of the first requests of the first measured phase."""
    source = source_of(plan, seed=plan.seed)
    phase = next(index for index, phase in enumerate(plan.phases) if phase.measure)
    items = list(islice(source.items(0, 1, phase=phase), SAMPLE))
    outputs = [source.reply_tokens(item) for item in items]
    inputs = [max(0, item.estimate_tokens - output) for item, output in zip(items, outputs, strict=True)]
    cost: float | None = None
    if all(prices.tiers[item.target] for item in items):
        pico = 0
        for item, given, made in zip(items, inputs, outputs, strict=True):
            tier = [tier for tier in prices.tiers[item.target] if tier.above < given or tier.above < 0][-1]
            pico += given * tier.input + made * tier.output
        cost = pico / len(items) / PICO
    return Asked(
        input_tokens=sum(inputs) / len(items),
        input_min=min(inputs),
        input_max=max(inputs),
        output_tokens=sum(outputs) / len(items),
        output_limited=all(
            item.prompt.max_tokens is not None or any(limits_in(plan.targets[item.target].parameters)) for item in items
        ),
        cost_usd=cost,
        price_date=prices.date,
    )


def _sum(parts: Sequence[Number | None]) -> Number | None:
    """None if any part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if len(known) == len(parts) else None
