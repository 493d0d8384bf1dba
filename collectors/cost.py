"""What requests cost: prices resolved once per target, then exact integer arithmetic. Unknown is unknown, never 0.

The order of trust: the target's own `price`, the user's price table, the public table of
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
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ..engine.errors import PlanError
from ..engine.plan.plan import Plan, Target
from ..engine.plan.price import Dated, Price, price, read_price_table
from ..engine.records.record import BILLED_APART, LOCAL_TOKENS, UNKNOWN, UNPRICED_PARTS

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
PICO_PER_UNIT = 10  # of the cost_usd histogram (metrics.SCALES)


class Prices:
    """The price of every target of a plan. `tiers[target]` is empty where the price is unknown.

    `problems` says which prices could not be looked up, and why: that leaves them unknown and costs no measurement."""

    def __init__(self, tiers: Sequence[Sequence[Price]], date: str | None, problems: Sequence[str] = ()) -> None:
        self.tiers = [sorted(each, key=lambda price: price.above) for each in tiers]
        self.date = date
        self.problems = tuple(problems)

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
    said &= (records["flags"] & (LOCAL_TOKENS | UNPRICED_PARTS)) == 0
    total_in, total_out = _billed(records, "input_tokens"), _billed(records, "output_tokens")
    cached = np.minimum(_tokens(records, "cached_tokens"), total_in)
    written = np.minimum(_tokens(records, "cache_write_tokens"), total_in - cached)
    reasoning = np.minimum(_tokens(records, "reasoning_tokens"), total_out)
    counts = np.stack([total_in - cached - written, cached, written, total_out - reasoning, reasoning])
    vectors = np.array([tier[:5] for tier in tiers], np.int64)
    chosen = np.searchsorted([tier.above for tier in tiers], total_in, side="left") - 1
    pico = (counts * vectors[np.maximum(chosen, 0)].T).sum(axis=0)
    return said, np.where(said, pico, 0)


def _billed(records: npt.NDArray[np.void], name: str) -> npt.NDArray[np.int64]:
    apart = (records["flags"] & BILLED_APART) != 0
    return np.where(apart, _tokens(records, f"billed_{name}"), _tokens(records, name))


def _tokens(records: npt.NDArray[np.void], name: str) -> npt.NDArray[np.int64]:
    return np.where(records[name] == UNKNOWN, 0, records[name]).astype(np.int64)


def prices_of(plan: Plan, *, today: datetime | None = None) -> Prices:
    """The prices of a plan's targets; what cannot be read or looked up is in `problems`."""
    today = today or datetime.now(UTC)
    problems: list[str] = []
    table: dict[str, list[Dated]] = {}
    if plan.price_table:
        try:
            table = read_price_table(plan.price_table)
        except PlanError as error:  # it was right when the run began
            problems.append(str(error))
    found = [_resolve(target, table, today, problems) for target in plan.targets]
    dates = sorted({date for _, date in found if date})
    return Prices([tiers for tiers, _ in found], ", ".join(dates) or None, problems)


def _resolve(
    target: Target, table: Mapping[str, list[Dated]], today: datetime, problems: list[str]
) -> tuple[list[Price], str | None]:
    if target.price is not None:
        return [price(target.price)], "plan"
    if target.model in table:
        active = [dated for dated in table[target.model] if dated.since <= today.date().isoformat()]
        return ([active[-1].price], active[-1].since or "price table") if active else ([], None)
    try:
        return _published(target, today)
    except Exception as error:  # somebody else's table and code: whatever it raises must not cost the measurement
        problems.append(f"no price for {target.model!r}: {type(error).__name__}: {error}")
        return [], None


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
    if listed.requests_kcount is not None:  # Perplexity: a fee per request that depends on how much was searched
        return [], None
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
