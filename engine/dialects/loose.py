"""The slow way to read an event that the narrow decoder refused: right JSON whose members have other types than usual.

Seen in the wild: content as a list of parts, numbers as text or as 12.0, halves of surrogate pairs, bytes that are no
UTF-8. What fits a member is taken, what does not is left at its default. Never raises. Not on the hot path.
"""

from __future__ import annotations

import json
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from llm_latency_lens.engine.record import UNKNOWN

DECODE_ERRORS: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What a msgspec JSON decoder raises: bytes that are no UTF-8 come as UnicodeDecodeError."""

_T = TypeVar("_T", bound=msgspec.Struct)


def loosely(kind: type[_T], data: bytes) -> _T | None:
    """`data` as a `kind`, as far as it goes; None where it is no JSON object."""
    try:
        value = json.loads(data.decode("utf-8", "replace"))
        return struct_of(kind, value) if isinstance(value, dict) else None
    except (ValueError, RecursionError, OverflowError):
        return None


def struct_of(kind: type[_T], value: dict[str, Any]) -> _T:
    """The members of `value` that `kind` knows and that fit."""
    found = {}
    for name, encoded, wanted in _members(kind):
        given = value.get(encoded)
        if given is not None and (fitted := _fit(wanted, given)) is not None:
            found[name] = fitted
    return kind(**found)


def count(tokens: float | None) -> int:
    """A token count as a record holds it: UNKNOWN where there is none, or none that can be."""
    if tokens is None or not tokens >= 0:
        return UNKNOWN
    return int(tokens) if tokens < UNKNOWN else UNKNOWN - 1


@cache
def _members(kind: type[msgspec.Struct]) -> list[tuple[str, str, Any]]:
    return [(field.name, field.encode_name, field.type) for field in msgspec.structs.fields(kind)]


def _fit(wanted: Any, value: Any) -> Any:
    """`value` as the type `wanted`, None where it is of no use."""
    origin = get_origin(wanted)
    if origin in (UnionType, Union):
        fits = (_fit(each, value) for each in get_args(wanted) if each is not NoneType)
        return next((fitted for fitted in fits if fitted is not None), None)
    if origin is list:
        return _items(get_args(wanted)[0], value)
    if wanted is str:
        return _text(value)
    if wanted in (int, float):
        return _number(value)
    if wanted is bool:
        return value if isinstance(value, bool) else None
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return struct_of(wanted, value) if isinstance(value, dict) else None
    return value if wanted is Any or isinstance(value, origin or wanted) else None


def _items(wanted: Any, value: Any) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    return [fitted for item in value if (fitted := _fit(wanted, item)) is not None]


def _text(value: Any) -> str | None:
    """Text, or the texts of a list of parts."""
    if isinstance(value, list):
        return "".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return _text(value.get("text"))
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float):
        return int(value) if value == value and abs(value) != float("inf") else None
    return value if isinstance(value, int) else None
