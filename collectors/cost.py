"""What requests cost: prices resolved once per target, then exact integer arithmetic. Unknown is unknown, never 0.

Prices are integer pico-USD per token, so that price x tokens has no rounding: a price per million tokens with up to six
decimals is exact. The order of trust: the target's own `price`, the user's price table, the public table of
`genai-prices`. There a model is looked up at the endpoint's own provider, else, behind a gateway or proxy, at the
provider whose API is spoken, if the name is one of that provider's closed models: open weights have no list price on
machines of one's own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from ..engine.errors import PlanError
from ..engine.plan.plan import Plan, Target
from ..engine.records.record import LOCAL_TOKENS, UNKNOWN

_OPENAI = r"(ft:)?(gpt-(?!oss)|chatgpt-|o\d|codex-|text-|davinci|babbage|computer-use)"
CLOSED_MODELS = {  # dialect -> its provider in the public table, and how the names of its closed models begin
    "openai": ("openai", _OPENAI),
    "openai-completions": ("openai", _OPENAI),
    "openai-responses": ("openai", _OPENAI),
    "azure-openai": ("azure", _OPENAI),
    "anthropic": ("anthropic", "claude-"),
    "google": ("google", "gemini-"),
    "cohere": ("cohere", "command"),
}
PICO_PER_TOKEN = 1_000_000  # pico-USD per token of a price of 1 USD per million tokens
PICO_PER_UNIT = 10  # of the cost_usd histogram (metrics.SCALES)
KINDS = ("input", "cached_input", "cache_write", "output", "reasoning")


class Price(NamedTuple):
    """Pico-USD per token, for requests with more than `above` input tokens."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    above: int = -1


class Prices:
    """The price of every target of a plan. `tiers[target]` is empty where the price is unknown."""

    def __init__(self, tiers: Sequence[Sequence[Price]], date: str | None) -> None:
        self.tiers = [sorted(each, key=lambda price: price.above) for each in tiers]
        self.date = date

    def cost(self, records: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """(is the cost known, pico-USD) per record: provider's usage present and the target priced."""
        known = np.zeros(len(records), np.bool_)
        pico = np.zeros(len(records), np.int64)
        for target, tiers in enumerate(self.tiers):
            mine = (records["target"] == target) if tiers else None
            if mine is not None and mine.any():
                known[mine], pico[mine] = _cost(records[mine], tiers)
        return known, pico


def _cost(records: npt.NDArray[np.void], tiers: Sequence[Price]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    said = (records["input_tokens"] != UNKNOWN) & (records["output_tokens"] != UNKNOWN)
    said &= (records["flags"] & LOCAL_TOKENS) == 0
    total_in, total_out = _tokens(records, "input_tokens"), _tokens(records, "output_tokens")
    cached = np.minimum(_tokens(records, "cached_tokens"), total_in)
    written = np.minimum(_tokens(records, "cache_write_tokens"), total_in - cached)
    reasoning = np.minimum(_tokens(records, "reasoning_tokens"), total_out)
    counts = np.stack([total_in - cached - written, cached, written, total_out - reasoning, reasoning])
    vectors = np.array([tier[:5] for tier in tiers], np.int64)
    chosen = np.searchsorted([tier.above for tier in tiers], total_in, side="left") - 1
    pico = (counts * vectors[np.maximum(chosen, 0)].T).sum(axis=0)
    return said, np.where(said, pico, 0)


def _tokens(records: npt.NDArray[np.void], name: str) -> npt.NDArray[np.int64]:
    return np.where(records[name] == UNKNOWN, 0, records[name]).astype(np.int64)


def price(per_million: Mapping[str, Any], *, above: int = -1) -> Price:
    """A Price of USD per million tokens by kind. Cached, cache-write and reasoning tokens cost what plain ones cost
    unless they have a price of their own. Raises PlanError for a negative, unknown or missing price."""
    unknown = set(per_million) - set(KINDS)
    if unknown:
        raise PlanError(f"price has the unknown key {min(unknown)!r}: use {', '.join(KINDS)}")
    if "input" not in per_million or "output" not in per_million:
        raise PlanError("price needs input and output, in USD per million tokens")
    pico = {kind: _pico(kind, value) for kind, value in per_million.items()}
    defaults = {"cached_input": pico["input"], "cache_write": pico["input"], "reasoning": pico["output"]}
    return Price(**{**defaults, **pico}, above=above)


def _pico(kind: str, value: Any) -> int:
    pico = Decimal(str(value)) * PICO_PER_TOKEN
    if not pico.is_finite() or pico < 0:
        raise PlanError(f"price.{kind} must be >= 0 USD per million tokens, got {value!r}")
    return int(pico.to_integral_value())


def prices_of(plan: Plan, *, today: datetime | None = None) -> Prices:
    """The prices of a plan's targets. Raises PlanError if the price table cannot be read."""
    today = today or datetime.now(UTC)
    table = _read_table(plan.price_table) if plan.price_table else {}
    found = [_resolve(target, table, today) for target in plan.targets]
    dates = sorted({date for _, date in found if date})
    return Prices([tiers for tiers, _ in found], ", ".join(dates) or None)


def _resolve(target: Target, table: Mapping[str, Any], today: datetime) -> tuple[list[Price], str | None]:
    if target.price is not None:
        return [price(target.price)], "plan"
    if target.model in table:
        return _from_table(table[target.model], today)
    return _published(target, today)


def _read_table(path: str) -> Mapping[str, Any]:
    """model -> one entry or a list of dated ones; an entry is USD per million tokens by kind and `effective_from`."""
    try:
        raw = Path(path).read_bytes()
        decoded = msgspec.json.decode(raw) if path.endswith(".json") else msgspec.yaml.decode(raw)
    except (OSError, msgspec.DecodeError) as error:
        raise PlanError(f"price_table {path}: {error}") from error
    if not isinstance(decoded, dict):
        raise PlanError(f"price_table {path}: must map model names to prices")
    return decoded


def _from_table(entry: Any, today: datetime) -> tuple[list[Price], str | None]:
    """The newest entry that is in effect."""
    entries = entry if isinstance(entry, list) else [entry]
    dated = sorted(((str(each.get("effective_from", "")), each) for each in entries), key=lambda pair: pair[0])
    active = [pair for pair in dated if pair[0] <= today.date().isoformat()]
    if not active:
        return [], None
    date, chosen = active[-1]
    return [price({kind: value for kind, value in chosen.items() if kind != "effective_from"})], date or "price table"


def _public(base_url: str) -> bool:
    """Not loopback, not a private address: an endpoint that may have a list price."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".localhost"))


def _published(target: Target, today: datetime) -> tuple[list[Price], str | None]:
    provider, closed = CLOSED_MODELS.get(target.provider, ("", "$."))
    known = re.match(closed, target.model) is not None
    if not known and not _public(target.base_url):
        return [], None
    import genai_prices  # 0.8 s to import: only where it can have an answer
    from genai_prices.data_snapshot import get_snapshot

    lookups: list[tuple[str | None, str | None]] = [(None, target.base_url), *([(provider, None)] if known else [])]
    for lookup in lookups:
        try:
            _, model = get_snapshot().find_provider_model(target.model, None, *lookup)
            break
        except LookupError:
            continue
    else:
        return [], None
    listed = model.get_prices(today)
    attributes = {
        "input": listed.input_mtok,
        "cached_input": listed.cache_read_mtok,
        "cache_write": listed.cache_write_mtok,
        "output": listed.output_mtok,
        "reasoning": listed.output_reasoning_mtok,
    }
    if attributes["input"] is None or attributes["output"] is None:
        return [], None
    starts = {-1} | {tier.start for value in attributes.values() for tier in getattr(value, "tiers", ())}
    tiers = [price(_at(attributes, start), above=start) for start in sorted(starts)]
    return tiers, f"genai-prices {genai_prices.__version__}"


def _at(attributes: Mapping[str, Any], start: int) -> dict[str, Decimal]:
    """The prices in force above `start` input tokens; past a threshold all tokens cost the tier's price."""
    chosen = {}
    for kind, value in attributes.items():
        if value is not None:
            tiers = [tier for tier in getattr(value, "tiers", ()) if tier.start <= start]
            chosen[kind] = tiers[-1].price if tiers else getattr(value, "base", value)
    return chosen
