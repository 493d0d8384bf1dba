"""The slow way to read an event that the narrow decoder refused: right JSON whose members have other types than usual.

Seen in the wild: content as a list of parts, numbers as text or as 12.0, halves of surrogate pairs, bytes that are no
UTF-8. What fits a member is taken, what does not is left at its default. Never raises. Not on the hot path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from ..records.record import UNKNOWN

DECODE_ERRORS: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What a msgspec JSON decoder raises: bytes that are no UTF-8 come as UnicodeDecodeError."""

_T = TypeVar("_T", bound=msgspec.Struct)


def loosely(kind: type[_T], data: bytes) -> _T | None:
    """`data` as a `kind`, as far as it goes; None where it is no JSON object."""
    try:
        fitted: _T | None = _fitter(kind)(any_json(data))
        return fitted
    except (ValueError, RecursionError, OverflowError):
        return None


def any_json(data: bytes) -> Any:
    """JSON that the strict decoder refuses for its characters. Raises ValueError, RecursionError for what is none."""
    return json.loads(data.decode("utf-8", "replace"), parse_constant=_no_number)


def whole_characters(text: str) -> str:
    """`text` without halves of surrogate pairs, which nothing can encode again."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def count(tokens: float | None) -> int:
    """A token count as a record holds it: UNKNOWN where there is none, or none that can be."""
    if tokens is None or not tokens >= 0:
        return UNKNOWN
    return int(tokens) if tokens < UNKNOWN else UNKNOWN - 1


def micros(ms: float | None) -> int:
    """Milliseconds as a record holds them, in us: UNKNOWN where there are none, or none that can be."""
    return UNKNOWN if ms is None else count(ms * 1000)


Fitter = Callable[[Any], Any]
"""A value as one type, None where it is of no use."""


@cache
def _fitter(wanted: Any) -> Fitter:
    """Made once per type: 6x faster than asking typing each time (benches/bench_dialect.py)."""
    origin = get_origin(wanted)
    if origin in (UnionType, Union):
        fitters = [_fitter(each) for each in get_args(wanted) if each is not NoneType]
        return fitters[0] if len(fitters) == 1 else lambda value: _first(fitters, value)
    if origin is list:
        item = _fitter(get_args(wanted)[0])
        return lambda value: _items(item, value)
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return _struct(wanted)
    if wanted is Any:
        return lambda value: value
    fitters_of_plain: dict[Any, Fitter] = {str: _text, int: _number, float: _number}
    return fitters_of_plain.get(wanted) or (lambda value: value if isinstance(value, wanted) else None)


def _struct(kind: type[msgspec.Struct]) -> Fitter:
    members = [(field.name, field.encode_name, _fitter(field.type)) for field in msgspec.structs.fields(kind)]

    def fit(value: Any) -> msgspec.Struct | None:
        if not isinstance(value, dict):
            return None
        found = {}
        for name, encoded, fitter in members:
            given = value.get(encoded)
            if given is not None and (fitted := fitter(given)) is not None:
                found[name] = fitted
        return kind(**found)

    return fit


def _first(fitters: list[Fitter], value: Any) -> Any:
    return next((fitted for fitter in fitters if (fitted := fitter(value)) is not None), None)


def _items(fitter: Fitter, value: Any) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    return [fitted for item in value if (fitted := fitter(item)) is not None]


def _text(value: Any) -> str | None:
    """Text, or the texts of a list of parts."""
    if isinstance(value, list):
        return "".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return _text(value.get("text"))
    return whole_characters(value) if isinstance(value, str) else None


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
