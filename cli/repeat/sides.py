"""What is measured by turns: the plan of the candidate, that of the base, and the order of the runs. No clock, no file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from ...engine.errors import PlanError
from ...engine.plan.address import parse_url, shown
from ...engine.plan.plan import Plan, Target
from ...engine.plan.slo import parse_slo

_SEED_BITS: Final = 31

SideName = Literal["base", "candidate", "run"]


class Turn(NamedTuple):
    """One run to come."""

    side: SideName
    seed: int


class Sides(NamedTuple):
    """The plans; without a base there is nothing to compare with."""

    base: Plan | None
    candidate: Plan

    def plan(self, side: SideName) -> Plan:
        if side == "base":
            assert self.base is not None
            return self.base
        return self.candidate


def sides_of(plan: Plan, against: str | None) -> Sides:
    """The plan's target is the candidate, `against` the base: another target of the plan, or another base URL.

    Raises PlanError for what is neither.
    """
    if against is None:
        return Sides(None, plan)
    names = [target.name for target in plan.targets]
    if "://" in against:
        if len(names) > 1:
            raise PlanError(
                f"--against URL is for a plan with one target, this one has {len(names)} ({', '.join(names)}); "
                "leave one, or name one of two targets"
            )
        return Sides(_with(plan, _at(plan.targets[0], against)), plan)
    if against not in names:
        raise PlanError(
            f"--against {shown(against)!r} is neither a target of the plan ({', '.join(names)}) nor a URL, which begins "
            f"with http:// or https://"
        )
    if len(names) > 2:
        raise PlanError(
            f"--against {against}: the plan has {len(names)} targets ({', '.join(names)}), and only one can be compared "
            "with it; leave two"
        )
    base = next(target for target in plan.targets if target.name == against)
    candidate = next((target for target in plan.targets if target.name != against), base)
    return Sides(_with(plan, base), _with(plan, candidate))


def _at(target: Target, url: str) -> Target:
    """The same target at another base URL. What belongs to the old address does not come along."""
    if "?" in url or "#" in url:  # not shown: people put keys there
        raise PlanError(
            "--against must not have a query or fragment; use the plan's api_key, api_version or parameters"
        )
    address = parse_url(url, what="--against")
    if address.user is not None:
        raise PlanError("--against must not hold credentials; use the plan's api_key or headers")
    by_host = target.name == parse_url(target.base_url).host
    name = address.host if by_host else target.name
    return msgspec.structs.replace(target, base_url=url, name=name, resolve=None, metrics_urls=())


def _with(plan: Plan, target: Target) -> Plan:
    """The plan with this target alone, and the objectives that judge it."""
    names = {each.name for each in plan.targets} - {target.name}
    slo = tuple(each for each in plan.slo if parse_slo(each).target not in names)
    return msgspec.structs.replace(plan, targets=(target,), slo=slo)


def described(plan: Plan) -> str:
    """`local (http://127.0.0.1:8000/v1, llama)`, all targets of the plan."""
    return ", ".join(
        f"{target.name} ({', '.join(filter(None, (target.base_url, target.model)))})" for target in plan.targets
    )


def turns(count: int, seed: int, *, compared: bool) -> Iterator[Turn]:
    """The runs in their order: A B B A, which cancels a drift of the machine, with A drawn anew for every four.

    Both runs of a pair have one seed: the same arrivals and lengths, so that these do not make a difference. All is drawn
    from `seed`.
    """
    drawn = random.Random(seed)
    if not compared:
        for _ in range(count):
            yield Turn("run", drawn.getrandbits(_SEED_BITS))
        return
    order: tuple[SideName, SideName] = ("base", "candidate")
    for pair in range(count):
        if pair % 2 == 0:
            order = ("base", "candidate") if drawn.random() < 0.5 else ("candidate", "base")
        else:
            order = (order[1], order[0])
        pair_seed = drawn.getrandbits(_SEED_BITS)
        for side in order:
            yield Turn(side, pair_seed)
