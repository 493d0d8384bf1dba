"""Templates over JSON values: `{{column}}` in any text of a body, replaced by that column of the workload.

A text that is exactly one placeholder becomes the column's value with its type, and a member of a mapping whose
placeholder has no value (None) is left out. Elsewhere in a text a value is written as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import PlanError

Columns = Mapping[str, Any]

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([^{}\s][^{}]*?)\s*\}\}")


class Template:
    """A JSON value with placeholders, parsed once. `names` are the columns it asks for."""

    __slots__ = ("_render", "names")

    def __init__(self, value: Any) -> None:
        names: set[str] = set()
        self._render = _compiled(value, names)
        self.names = frozenset(names)

    def render(self, columns: Columns) -> Any:
        """The value with every placeholder filled. Raises PlanError for a column that is not there."""
        return self._render(columns)


def _compiled(value: Any, names: set[str]) -> Callable[[Columns], Any]:
    if isinstance(value, str):
        return _text(value, names)
    if isinstance(value, list | tuple):
        items = [_compiled(item, names) for item in value]
        return lambda columns: [item(columns) for item in items]
    if isinstance(value, dict):
        return _mapping(value, names)
    return lambda _columns: value


def _mapping(value: dict[str, Any], names: set[str]) -> Callable[[Columns], Any]:
    members = [
        (key, _compiled(item, names), isinstance(item, str) and bool(_PLACEHOLDER.fullmatch(item)))
        for key, item in value.items()
    ]

    def render(columns: Columns) -> dict[str, Any]:
        filled = ((key, item(columns), optional) for key, item, optional in members)
        return {key: item for key, item, optional in filled if item is not None or not optional}

    return render


def _text(value: str, names: set[str]) -> Callable[[Columns], Any]:
    alone = _PLACEHOLDER.fullmatch(value)
    if alone:
        name = alone[1]
        names.add(name)
        return lambda columns: _column(columns, name)
    parts = _PLACEHOLDER.split(value)  # text, name, text, name, ..., text
    if len(parts) == 1:
        return lambda _columns: value
    names.update(parts[1::2])

    def render(columns: Columns) -> str:
        filled = list(parts)
        filled[1::2] = [_as_text(_column(columns, name)) for name in parts[1::2]]
        return "".join(filled)

    return render


def _column(columns: Columns, name: str) -> Any:
    try:
        return columns[name]
    except KeyError:
        raise PlanError(f"the template asks for {{{{{name}}}}}, but there is only: {', '.join(columns)}") from None


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
