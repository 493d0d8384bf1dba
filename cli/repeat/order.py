"""What the starter of a repeated run sends to its process."""

from __future__ import annotations

import msgspec

from ...engine.plan.plan import Plan


class RunOrder(msgspec.Struct, frozen=True):
    """A plan, secrets included. `beside` are processes of ours that are kept off its cores. `warn`: the warnings that are
    the same for all runs."""

    plan: Plan
    run_id: str
    parent: int
    beside: list[int]
    quiet: bool
    warn: bool
