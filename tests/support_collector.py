"""Scripted requests for the collector's tests: records with known marks, plans, and batches of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.cost import Prices
from llm_latency_lens.collectors.goodput import Line
from llm_latency_lens.collectors.series import Batch, Series, Slab
from llm_latency_lens.engine.plan.plan import Load, Output, Phase, Plan, Shape, Target, Workload
from llm_latency_lens.engine.plan.slo import Condition
from llm_latency_lens.engine.records.record import FIELDS, RETRANSMITS_UNKNOWN, UNKNOWN, Outcome, record_dtype
from llm_latency_lens.engine.records.ticks import SENT
from llm_latency_lens.engine.records.writer import SegmentWriter
from llm_latency_lens.engine.runs.manifest import Manifest, PhaseTimes

MS = 1_000_000
SECOND = 1_000_000_000
START = 1_000 * SECOND

TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def fields(**given: Any) -> dict[str, int]:
    """A record's fields: by default an `ok` stream of 11 tokens, 20 ms to the first, 10 ms between."""
    intended = given.get("intended_ns", START)
    usual = {
        "intended_ns": intended,
        "dequeued_ns": intended,
        "send_ns": intended + MS,
        "last_send_ns": intended + MS,
        "headers_ns": intended + 11 * MS,
        "first_event_ns": intended + 12 * MS,
        "first_token_ns": intended + 21 * MS,
        "first_output_ns": intended + 21 * MS,
        "last_token_ns": intended + 121 * MS,
        "end_ns": intended + 131 * MS,
        "itl_max_ns": 10 * MS,
        "slots": 1,
        "input_tokens": 100,
        "output_tokens": 11,
        "events": 13,
        "token_events": 11,
        "attempts": 1,
        "http_status": 200,
        "outcome": Outcome.OK,
        "cached_tokens": UNKNOWN,
        "cache_write_tokens": UNKNOWN,
        "reasoning_tokens": UNKNOWN,
        "rtt_us": 200,
        "provider_us": UNKNOWN,
        "flags": 1,
    }
    return {name: 0 for name, _ in FIELDS} | usual | given


NOT_SAID = dict.fromkeys((*TOKENS, "rtt_us", "provider_us"), UNKNOWN) | {"tcp_retransmits": RETRANSMITS_UNKNOWN}


def unsent(reason: int, *, slots: int = 1, **given: Any) -> dict[str, int]:
    """A run of slots that were not sent."""
    bare = {name: 0 for name, _ in FIELDS} | NOT_SAID
    return bare | {"intended_ns": START, "slots": slots, "unsent": reason} | given


def values(record: dict[str, int]) -> list[int]:
    """As SegmentWriter.push takes them."""
    return [int(record[name]) for name, _ in FIELDS]


def records(*rows: dict[str, int]) -> Any:
    made = np.zeros(len(rows), record_dtype())
    for place, row in zip(made, rows, strict=True):
        for name, value in row.items():
            place[name] = value
    return made


def batch(*rows: dict[str, int], prices: Prices | None = None, targets: int = 1) -> Batch:
    return Reader(targets, prices=prices).batch(records(*rows), worker=0, details={})


def slab(
    *rows: dict[str, int],
    targets: int = 1,
    prices: Prices | None = None,
    conditions: list[Condition] | None = None,
) -> Slab:
    """The totals of these records."""
    lines = [Line(conditions)] if conditions else []
    reader, made = Reader(targets, prices=prices, lines=lines), Slab()
    reader.records(made, reader.batch(records(*rows), worker=0, details={}))
    return made


def series(*rows: dict[str, int], **options: Any) -> Series:
    return slab(*rows, **options).only(lambda _: True)


def happens(writer: SegmentWriter, series: int, at_ns: int, *gaps_ns: int, ttft_ns: int = 20 * MS) -> None:
    """A request is sent, and its first token and one token a gap arrive, all at one moment."""
    live = writer.ticks.of(series)
    live.count(SENT, at_ns)
    live.first(ttft_ns, at_ns)
    for gap_ns in gaps_ns:
        live.gap(gap_ns, at_ns)


def plan(
    *,
    targets: int = 1,
    phases: int = 1,
    rate: float | None = None,
    duration_ns: int | None = None,
    requests: int | None = None,
    warmup: bool = False,
    tick_ns: int = SECOND,
) -> Plan:
    load = Load(
        model="open" if rate else "closed",
        shapes=(Shape(duration_ns=duration_ns or 3600 * SECOND, start=rate or 8, end=rate or 8),),
    )
    return Plan(
        name="test",
        targets=tuple(
            Target(name=f"target-{i}", provider="openai", base_url="http://127.0.0.1:1/v1", model="m")
            for i in range(targets)
        ),
        workload=Workload(),
        phases=tuple(
            Phase(
                name=f"phase-{i}",
                load=load,
                duration_ns=duration_ns,
                requests=requests,
                measure=not (warmup and i == 0),
            )
            for i in range(phases)
        ),
        output=Output(tick_ns=tick_ns),
    )


def manifest(run_dir: str, run_plan: Plan, **given: Any) -> Manifest:
    usual: dict[str, Any] = {
        "run_id": "20261123T000000Z-test-abcd",
        "run_dir": run_dir,
        "version": "0",
        "plan": run_plan,
        "plan_sha256": "0" * 64,
        "workers": 1,
        "started_at": "2026-11-23T00:00:00Z",
        "anchor_mono_ns": START,
        "anchor_wall_ns": 1_700_000_000 * SECOND,
        "state": "running",
        "phases": [PhaseTimes(start_ns=START) for _ in run_plan.phases],
    }
    return Manifest(**(usual | given))
