"""What a check finds and what `lens doctor --json` prints of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from .facts import Facts

State = Literal["ok", "warn", "fail", "unknown"]


class Finding(NamedTuple):
    """The result of one check. `value` is None where the machine does not show it, `cure` is empty where all is well."""

    state: State
    value: str | None
    bound: str
    cure: str = ""


class Rule(NamedTuple):
    """One row of the table: a name, why the value matters to a measurement, and the function that judges it."""

    name: str
    why: str
    judge: Callable[[Facts], Finding]


class Check(msgspec.Struct):
    """One line of the result. `cure` is a command or a setting, null where none is needed."""

    name: str
    state: State
    value: str | None
    bound: str
    why: str
    cure: str | None


class Diagnosis(msgspec.Struct, kw_only=True):
    """The document of `lens doctor --json`. UNFIT if a check failed, USABLE with warnings, else READY."""

    schema: int = 1
    state: Literal["READY", "USABLE", "UNFIT"]
    checks: list[Check]

    @property
    def not_ok(self) -> list[str]:
        return [check.name for check in self.checks if check.state != "ok"]


def diagnosed(rules: Sequence[Rule], facts: Facts) -> Diagnosis:
    """All rules applied to the facts. What nobody can see here is `unknown` and does not change the state."""
    checks = []
    for rule in rules:
        found = rule.judge(facts)
        checks.append(Check(rule.name, found.state, found.value, found.bound, rule.why, found.cure or None))
    states = {check.state for check in checks}
    return Diagnosis(state="UNFIT" if "fail" in states else "USABLE" if "warn" in states else "READY", checks=checks)


def unknown(bound: str, cure: str = "") -> Finding:
    """The machine does not show it."""
    return Finding("unknown", None, bound, cure)


def judged(good: bool, value: str, bound: str, cure: str, *, otherwise: State = "warn") -> Finding:
    """`ok` if it is good, else `otherwise` with the cure."""
    return Finding("ok", value, bound) if good else Finding(otherwise, value, bound, cure)
