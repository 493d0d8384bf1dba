"""Numbers with units as people write them: 250ms, 10s, 5m, 7d; 1GiB, 100MB; 50/s."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

NS: Final = {"ns": 1, "us": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
PER: Final = {"": 1, "/s": 1, "/m": 60, "/min": 60, "/h": 3600}

_NUMBER: Final = r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)"  # 1e3 is text to YAML
_quantity = re.compile(rf"\s*{_NUMBER}\s*([A-Za-z/]*)\s*").fullmatch
_durations = re.compile(rf"\s*(?:{_NUMBER}\s*(?:ns|us|ms|s|m|h|d)\s*)+").fullmatch
_part = re.compile(rf"{_NUMBER}\s*(ns|us|ms|s|m|h|d)").findall


def duration_ns(text: str | int | float) -> int:
    """A duration in ns: `90s`, `1m30s`, `250ms`; a bare number is seconds. Raises ValueError."""
    if isinstance(text, bool):
        raise ValueError("a duration is a number with a unit, such as 10s")
    if isinstance(text, int | float):
        return int(Fraction(text) * 10**9)
    if (number := _quantity(text)) and not number[2]:
        return int(Fraction(number[1]) * 10**9)
    if not _durations(text):
        raise ValueError("a duration is a number with a unit: 250ms, 10s, 5m, 2h or 7d")
    return int(sum((Fraction(value) * NS[unit] for value, unit in _part(text)), Fraction(0)))


def size_bytes(text: str | int) -> int:
    """A size in bytes: 1GiB, 100MB, 4096. Raises ValueError."""
    found = _quantity(str(text))
    if isinstance(text, bool) or not found or found[2].lower() not in BYTES:
        raise ValueError("a size is a number with a unit: 4096, 100MB or 1GiB")
    return int(Fraction(found[1]) * BYTES[found[2].lower()])


def rate_per_s(text: str | int | float) -> float:
    """A rate per second: 50, 0.5, 50/s, 600/m. Raises ValueError."""
    if isinstance(text, bool):
        raise ValueError("a rate is a number per second, such as 50 or 600/m")
    if isinstance(text, int | float):
        return float(text)
    sign, digits = (-1, text.strip()[1:]) if text.strip().startswith("-") else (1, text)
    found = _quantity(digits)
    if not found or found[2] not in PER:
        raise ValueError("a rate is a number per second, such as 50, 50/s or 600/m")
    return float(sign * Fraction(found[1]) / PER[found[2]])


def written_duration(ns: int) -> str:
    """A duration as `duration_ns` reads it back exactly, in the largest unit without a fraction: 90000000000 is `90s`."""
    for unit in ("d", "h", "s", "ms", "us"):
        if ns and ns % NS[unit] == 0:
            return f"{ns // NS[unit]}{unit}"
    return f"{ns}ns" if ns else "0s"
