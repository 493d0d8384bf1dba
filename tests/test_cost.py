"""Costs against Decimal arithmetic, and where a price comes from."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.cli.main import main
from llm_latency_lens.collectors.cost import Prices, prices_of
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.plan.price import price, read_price_table
from llm_latency_lens.engine.records.record import BILLED_APART, LOCAL_TOKENS, UNKNOWN, UNPRICED_PARTS
from tests.support_collector import fields, plan, records
from tests.support_lens import measured
from tests.support_simulator import FAST, simulator

USD = st.decimals(0, 1000, places=4)
COUNT = st.integers(0, 2_000_000)
TODAY = datetime(2026, 11, 23, tzinfo=UTC)


def cost(row: dict[str, int], *tiers: Any) -> int | None:
    known, pico = Prices([tiers], None).cost(records(row))
    return int(pico[0]) if known[0] else None


@settings(max_examples=100, deadline=None)
@given(USD, USD, USD, USD, USD, COUNT, COUNT, COUNT, COUNT, COUNT)
def test_a_cost_is_decimal_arithmetic_to_the_last_pico(
    i: Decimal,
    c: Decimal,
    w: Decimal,
    o: Decimal,
    r: Decimal,
    plain: int,
    cached: int,
    written: int,
    out: int,
    think: int,
) -> None:
    row = fields(
        input_tokens=plain + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=out + think,
        reasoning_tokens=think,
    )
    reported = cost(row, price({"input": i, "cached_input": c, "cache_write": w, "output": o, "reasoning": r}))
    exact = (plain * i + cached * c + written * w + out * o + think * r) / 1_000_000
    assert reported is not None
    assert Decimal(reported) / 10**12 == exact


UNKNOWNS = [
    ("the provider reported no input tokens", fields(input_tokens=UNKNOWN)),
    ("the provider reported no output tokens", fields(output_tokens=UNKNOWN)),
    ("a local tokenizer is not the provider's bill", fields(flags=LOCAL_TOKENS)),
    ("another target's", fields(target=1)),
    ("the provider bills parts that have no price per token", fields(flags=UNPRICED_PARTS)),
]


@pytest.mark.parametrize(("why", "row"), UNKNOWNS, ids=[row[0] for row in UNKNOWNS])
def test_an_unknown_cost_is_unknown_not_zero(why: str, row: dict[str, int]) -> None:
    assert cost(row, price({"input": 1, "output": 1})) is None


def test_kinds_without_a_price_of_their_own_cost_what_plain_tokens_cost() -> None:
    row = fields(input_tokens=10, cached_tokens=4, output_tokens=6, reasoning_tokens=5)
    assert cost(row, price({"input": 1, "output": 10})) == (10 + 60) * 1_000_000


def test_above_a_threshold_all_tokens_cost_the_tiers_price() -> None:
    tiers = price({"input": 1, "output": 1}), price({"input": 2, "output": 3}, above=200)
    assert cost(fields(input_tokens=200, output_tokens=1), *tiers) == 201 * 1_000_000
    assert cost(fields(input_tokens=201, output_tokens=1), *tiers) == (402 + 3) * 1_000_000


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"input": 1}, "output"),
        ({"input": -1, "output": 1}, "price.input must be 0 to"),
        ({"input": 1, "output": 1, "x": 1}, "'x'"),
        ({"input": 1e30, "output": 1}, "price.input"),
        ({"input": float("nan"), "output": 1}, "price.input"),
        ({"input": True, "output": 1}, "price.input"),
        ({"input": 1, "output": "many"}, "price.output"),
    ],
)
def test_a_wrong_price_says_what_is_wrong(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        price(wrong)


def with_target(**given_fields: Any) -> Plan:
    usual = plan()
    return msgspec.structs.replace(usual, targets=(msgspec.structs.replace(usual.targets[0], **given_fields),))


def test_the_targets_own_price_comes_first() -> None:
    made = prices_of(with_target(price={"input": 1, "output": 2}))
    assert made.tiers == [[price({"input": 1, "output": 2})]]
    assert made.date == "plan"


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt-oss-120b", "gpt-9-of-mine", "m"])
def test_a_self_hosted_model_has_no_list_price(model: str) -> None:
    assert prices_of(with_target(model=model)).tiers == [[]]


GATEWAY = [
    ("openai", "gpt-4o-mini", "https://api.openai.com/v1"),
    ("openai-responses", "gpt-4.1-mini", "https://api.openai.com/v1"),
    ("azure-openai", "gpt-4o", "https://me.openai.azure.com"),
    ("anthropic", "claude-haiku-4-5", "https://api.anthropic.com"),
    ("google", "gemini-2.5-flash", "https://generativelanguage.googleapis.com"),
    ("cohere", "command-a-03-2025", "https://api.cohere.com"),
]


@pytest.mark.parametrize(("provider", "model", "public"), GATEWAY)
def test_a_gateway_costs_what_the_provider_behind_it_does(provider: str, model: str, public: str) -> None:
    behind = prices_of(with_target(provider=provider, model=model), today=TODAY)
    assert behind.tiers == prices_of(with_target(base_url=public, model=model), today=TODAY).tiers
    assert behind.tiers[0]


def test_the_newest_entry_of_the_users_table_that_is_in_effect(tmp_path: Path) -> None:
    table = tmp_path / "prices.json"
    entries = [
        {"input": 9, "output": 9, "effective_from": "2027-01-01"},
        {"input": 1, "output": 2, "effective_from": "2026-01-01"},
        {"input": 5, "output": 5, "effective_from": "2025-01-01"},
    ]
    table.write_bytes(msgspec.json.encode({"m": entries}))
    made = prices_of(msgspec.structs.replace(plan(), price_table=str(table)), today=TODAY)
    assert made.tiers == [[price({"input": 1, "output": 2})]]
    assert made.date == "2026-01-01"


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nowhere"):
        read_price_table(str(tmp_path / "nowhere.json"))


BAD_TABLES = [
    ("[]", "must map model names"),
    ("m: 3", "model 'm': must be a price"),
    ("m: []", "model 'm': has no price"),
    ("m: [3]", "model 'm': must be a price"),
    ("m: {input: 1}", "model 'm': price needs input and output"),
    ("m: {input: 1, output: x}", "model 'm': price.output"),
    ("m: {input: 1e30, output: 1}", "model 'm': price.input"),
    ("m: {input: .nan, output: 1}", "model 'm': price.input"),
    ("m: {input: 1, output: 1, cash: 1}", "model 'm': price has the unknown key 'cash'"),
    ("m: {input: 1, output: 1, effective_from: soon}", "model 'm': effective_from must be a day"),
    ("m: {input: 1, output: 1, effective_from: 2026-13-01}", "month must be in 1..12"),
    ("another: {input: -1, output: 1}", "model 'another': price.input"),
    ("4.1: {input: 1, output: 1}", "model 4.1: a model's name must be text"),
    ("m: {input: 1", "price_table"),
]


@pytest.mark.parametrize(("table", "message"), BAD_TABLES, ids=[row[0] for row in BAD_TABLES])
@pytest.mark.parametrize("command", [["validate"], ["run"]])
def test_a_bad_price_table_ends_with_2_before_anything_is_sent(
    tmp_path: Path, command: list[str], table: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It used to be found by the collector, when the requests had been paid for. The port has no listener."""
    (tmp_path / "prices.yaml").write_text(table)
    (tmp_path / "plan.yaml").write_text(
        f"target: {{base_url: 'http://127.0.0.1:1/v1', model: m}}\nprice_table: {tmp_path}/prices.yaml\nrequests: 1\n"
    )
    with pytest.raises(SystemExit) as ended:
        main([*command, str(tmp_path / "plan.yaml")])
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert "prices.yaml" in said
    assert message in said


def test_a_price_out_of_bounds_ends_with_2_before_anything_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """1e30 USD overflow the collector's 64 bits."""
    (tmp_path / "plan.yaml").write_text(
        "target: {base_url: 'http://127.0.0.1:1/v1', model: m, price: {input: 1e30, output: 1}}\nrequests: 1\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(tmp_path / "plan.yaml")])
    assert ended.value.code == 2
    assert "price.input" in capfd.readouterr().err


def test_a_table_that_vanished_during_the_run_leaves_the_cost_unknown(tmp_path: Path) -> None:
    """A price may never cost a measurement."""
    made = prices_of(msgspec.structs.replace(plan(), price_table=str(tmp_path / "nowhere.json")))
    assert made.tiers == [[]]
    assert "nowhere" in made.problems[0]


def test_a_price_library_that_fails_leaves_the_cost_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without a price kind once killed the collector of every run with a priced model."""

    def broken() -> None:
        raise AttributeError("no get_prices")

    monkeypatch.setattr("genai_prices.data_snapshot.get_snapshot", broken)
    made = prices_of(with_target(base_url="https://api.openai.com/v1", model="gpt-4o-mini"))
    assert made.tiers == [[]]
    assert made.problems == ("no price for 'gpt-4o-mini': AttributeError: no get_prices",)


def test_what_is_billed_is_priced_where_it_differs_from_what_was_processed() -> None:
    """Cohere does not bill the prompt's template: its tokens cost up to 6x too much."""
    row = fields(input_tokens=500, output_tokens=9, billed_input_tokens=80, billed_output_tokens=7, flags=BILLED_APART)
    assert cost(row, price({"input": 1, "output": 10})) == (80 + 70) * 1_000_000


def test_a_model_with_a_fee_per_request_has_no_known_price() -> None:
    """Perplexity's fee depends on how much was searched; the price of the tokens alone is a third of the bill."""
    assert prices_of(with_target(base_url="https://api.perplexity.ai", model="sonar")).tiers == [[]]


PUBLISHED = [
    ("https://api.openai.com/v1", "gpt-4o-mini"),
    ("https://api.anthropic.com", "claude-sonnet-4-5"),
    ("https://generativelanguage.googleapis.com", "gemini-2.5-pro"),
]


@pytest.mark.parametrize(("base_url", "model"), PUBLISHED)
def test_a_public_endpoints_cost_is_what_the_price_library_calculates(base_url: str, model: str) -> None:
    from genai_prices import Usage, calc_price

    made = prices_of(with_target(base_url=base_url, model=model), today=TODAY)
    for total in (1_000, 300_000):
        row = fields(input_tokens=total, cached_tokens=400, output_tokens=700)
        known, pico = made.cost(records(row))
        usage = Usage(input_tokens=total, cache_read_tokens=400, output_tokens=700)
        expected = calc_price(usage, model, provider_api_url=base_url, genai_request_timestamp=TODAY).total_price
        assert known[0]
        assert Decimal(int(pico[0])) / 10**12 == expected
    assert made.date is not None


@pytest.mark.slow
def test_a_run_tells_its_cost_per_thousand_requests_and_per_day(tmp_path: Path) -> None:
    with simulator(**FAST) as sim:
        plan_file = tmp_path / "plan.yaml"
        plan_file.write_text(
            f"target: {{base_url: '{sim.base_url}/v1', model: m, price: {{input: 3, output: 15}}}}\n"
            "load: {rate: 50}\nduration: 2s\n"
        )
        summary = measured(str(plan_file), cwd=tmp_path)
    cost, tokens = summary["cost"], summary["tokens"]
    exact = (Decimal(3) * tokens["input"] + Decimal(15) * tokens["output"]) / 1_000_000
    assert cost["priced_requests"] == summary["requests"]["ok"] == 100
    assert cost["usd"] == pytest.approx(float(exact), rel=1e-12)
    assert cost["usd_per_1k_requests"] == pytest.approx(float(exact * 10), rel=1e-12)
    per_second = summary["throughput"]["requests_per_s"] * float(exact) / 100
    assert cost["usd_per_day"] == pytest.approx(per_second * 86_400, rel=1e-9)
    assert summary["targets"][0]["cost"] == cost
