"""What every prompt begins with, for studies of KV caches: the same text, or one that no other prompt has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import Workload
from .draw import key_of
from .text import HEAD, Prose

_MADE_UP: Final = ("synthetic", "trace")

PrefixOf = Callable[[int], Callable[[int], str]]  # phase -> slot -> text


def prefix_of(workload: Workload, seed: int, prose: Prose) -> tuple[PrefixOf, int] | None:
    """The prefixes of a phase's slots and their length in tokens, on top of the prompts' own. None for none.

    unique: HEAD words if no length is asked for, the fewest that differ between all slots; made-up prompts are unique
    without. Two runs with one seed have the same prefixes only if they have the same salt, too (`workload.salt`).
    """
    tokens = workload.prefix_tokens
    if workload.prefix == "none":
        if tokens:
            raise PlanError("prefix_tokens needs a prefix: shared or unique (workload.prefix)")
        return None
    if workload.prefix == "shared":
        if not tokens:
            raise PlanError("a shared prefix needs a length (workload.prefix_tokens)")
        shared = prose.text(key_of(seed, "shared prefix"), tokens)
        return (lambda phase: lambda slot: shared), tokens
    if workload.kind in _MADE_UP and not tokens:
        return None
    tokens = tokens or HEAD

    def unique(phase: int) -> Callable[[int], str]:
        key = key_of(seed, phase, "prefix")
        return lambda slot: prose.text(key ^ slot, tokens)

    return unique, tokens


def prefixed(prompt: Prompt, prefix: str, target_system: str | None, joint: str) -> Prompt:
    """The prompt with `prefix` as the first text that the model sees: of the system prompt where there is one."""
    system = prompt.system if prompt.system is not None else target_system
    if system:
        return prompt._replace(system=f"{prefix}{joint}{system}")
    first, *later = prompt.messages
    content = first["content"]
    if isinstance(content, str):
        content = f"{prefix}{joint}{content}"
    else:
        content = [{"type": "text", "text": prefix}, *content]
    return prompt._replace(messages=({**first, "content": content}, *later))
