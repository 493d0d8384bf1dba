"""Which values of a plan are secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plan import Plan, Secret, Target
from .walk import mapped


def secrets(plan: Plan | Target) -> Iterator[str]:
    """Every secret value of the plan or target, for those who must check that none leaks."""
    found: list[str] = []

    def note(part: Any) -> Any:
        if isinstance(part, Secret):
            found.append(part.value)
        return part

    mapped(plan, note, Secret)
    yield from found
