"""JSON Pointers (RFC 6901): where in a decoded value something is."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import PlanError

Steps = tuple[str, ...]


@cache
def steps_of(pointer: str) -> Steps:
    """The steps of a pointer such as `/choices/0/text`; the empty pointer is the value itself. Raises PlanError."""
    if not pointer:
        return ()
    if not pointer.startswith("/"):
        raise PlanError(f"a JSON Pointer must begin with '/', got {pointer!r}; write it like /message/content")
    return tuple(_unescaped(step, pointer) for step in pointer[1:].split("/"))


def found_at(steps: Steps, value: Any) -> Any:
    """What is there, None where the way ends before."""
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and (step == "0" or step[0] != "0"):
            # Beyond four thousand digits int() refuses; no list is that long.
            value = value[int(step)] if len(step) < 10 and int(step) < len(value) else None
        else:
            return None
    return value


def _unescaped(step: str, pointer: str) -> str:
    """`~1` is a slash and `~0` a tilde, in this order (RFC 6901, section 4)."""
    if "~" in step.replace("~0", "").replace("~1", ""):
        raise PlanError(f"in a JSON Pointer '~' must be followed by 0 or 1, got {pointer!r}")
    return step.replace("~1", "/").replace("~0", "~")
