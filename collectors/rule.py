"""What a rule of the verdict is. The rules are in collectors.verdict, collectors.replies and collectors.tick_health."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

F = TypeVar("F")
P = TypeVar("P")


class Rule(NamedTuple, Generic[F]):
    """A reason: when it holds, in words and as a test of facts, and what people read then."""

    code: str
    when: str
    holds: Callable[[F], bool]
    text: Callable[[F], str]


def of_part(rules: Sequence[Rule[P]], part: Callable[[F], P]) -> tuple[Rule[F], ...]:
    """The same rules, for facts that have what they look at as a part."""
    return tuple(_of_part(rule, part) for rule in rules)


def _of_part(rule: Rule[P], part: Callable[[F], P]) -> Rule[F]:
    return Rule(rule.code, rule.when, lambda facts: rule.holds(part(facts)), lambda facts: rule.text(part(facts)))
