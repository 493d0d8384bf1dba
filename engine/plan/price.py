"""Prices per token: one target's `price`, and the user's price table. Checked here and nowhere else. Without numpy.

Prices are integer pico-USD per token, so that price x tokens has no rounding: a price per million tokens with up to six
decimals is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ..errors import PlanError

KINDS: Final = ("input", "cached_input", "cache_write", "output", "reasoning")
PICO_PER_TOKEN: Final = 1_000_000  # pico-USD per token of a price of 1 USD per million tokens
USD_MAX: Final = 100_000  # per million tokens: 90 million tokens of it still fit 64 bits of pico-USD


class Price(NamedTuple):
    """Pico-USD per token, for requests with more than `above` input tokens."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    above: int = -1


class Dated(NamedTuple):
    """An entry of a price table and the day from which it holds; no day is always."""

    since: str
    price: Price


def price(per_million: Mapping[str, Any], *, above: int = -1) -> Price:
    """A Price of USD per million tokens by kind. Cached, cache-write and reasoning tokens cost what plain ones cost
    unless they have a price of their own. Raises PlanError for a price that is unknown, missing or out of bounds."""
    unknown = [kind for kind in per_million if kind not in KINDS]
    if unknown:
        raise PlanError(f"price has the unknown key {unknown[0]!r}: use {', '.join(KINDS)}")
    if "input" not in per_million or "output" not in per_million:
        raise PlanError("price needs input and output, in USD per million tokens")
    pico = {kind: _pico(kind, value) for kind, value in per_million.items()}
    defaults = {"cached_input": pico["input"], "cache_write": pico["input"], "reasoning": pico["output"]}
    return Price(**{**defaults, **pico}, above=above)


def read_price_table(path: str) -> dict[str, list[Dated]]:
    """The entries of a price table by model, oldest first. Raises PlanError that names the file, the model and the key.

    The file, YAML or JSON, maps a model to one entry or a list of dated ones; an entry is USD per million tokens by
    kind, and `effective_from`.
    """
    try:
        raw = Path(path).read_bytes()
        decoded = msgspec.json.decode(raw) if path.endswith(".json") else msgspec.yaml.decode(raw)
    except (OSError, ValueError, RecursionError) as error:  # DecodeError and UnicodeDecodeError are ValueErrors
        raise PlanError(f"price_table {path}: {error}") from error
    if not isinstance(decoded, dict):
        raise PlanError(f"price_table {path}: must map model names to prices")
    table = {}
    for model, entry in decoded.items():
        try:
            if not isinstance(model, str):
                raise PlanError(f"a model's name must be text, write it as {str(model)!r}")
            table[model] = _dated(entry)
        except PlanError as error:
            raise PlanError(f"price_table {path}: model {model!r}: {error}") from error
    return table


def _dated(entry: object) -> list[Dated]:
    entries: Sequence[Any] = entry if isinstance(entry, list) else [entry]
    found = []
    for each in entries:
        if not isinstance(each, dict):
            raise PlanError(f"must be a price or a list of them, {{input: USD, output: USD}}, got {each!r}")
        per_million = {kind: value for kind, value in each.items() if kind != "effective_from"}
        found.append(Dated(_day(each.get("effective_from")), price(per_million)))
    if not found:
        raise PlanError("has no price")
    return sorted(found)


def _day(given: object) -> str:
    if given is None:
        return ""
    try:
        return date.fromisoformat(str(given)).isoformat()
    except ValueError as error:
        raise PlanError(f"effective_from must be a day such as 2026-01-31, got {given!r}") from error


def _pico(kind: str, value: object) -> int:
    try:
        usd = Decimal(str(value)) if not isinstance(value, bool) else Decimal(-1)
    except InvalidOperation:
        usd = Decimal(-1)
    if not (usd.is_finite() and 0 <= usd <= USD_MAX):
        raise PlanError(f"price.{kind} must be 0 to {USD_MAX:,} USD per million tokens, got {value!r}")
    return int((usd * PICO_PER_TOKEN).to_integral_value())
