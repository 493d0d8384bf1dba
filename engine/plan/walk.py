"""One walk over a tree of structs, mappings and sequences, for what must reach every value of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


def mapped(part: Any, change: Callable[[Any], Any], leaf: type[msgspec.Struct]) -> Any:
    """The same tree with `change(value)` in place of every struct of type `leaf` and of every plain value."""
    if isinstance(part, leaf):
        return change(part)
    if isinstance(part, msgspec.Struct):
        names = part.__struct_fields__
        return msgspec.structs.replace(part, **{name: mapped(getattr(part, name), change, leaf) for name in names})
    if isinstance(part, dict):
        return {key: mapped(value, change, leaf) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(mapped(item, change, leaf) for item in part)
    return change(part)
