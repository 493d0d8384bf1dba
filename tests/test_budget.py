"""A budget is never overspent: not by what is in flight, not by later turns of sessions, not over a worker's death."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.load.budget import Budget
from llm_latency_lens.engine.records.record import UNKNOWN
from tests.support_lens import accounts, finish, manifest_of, measured, running
from tests.support_simulator import FAST, simulator

PRICE = "price: {input: 1, output: 100}"


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2), st.integers(0, 50)), max_size=60),
    st.integers(0, 5_000),
)
def test_what_is_reserved_and_spent_never_exceeds_it(steps: list[tuple[int, int, int, int]], limit: int) -> None:
    """Replies use at most what was reserved for them, as max_tokens makes sure."""
    totals: list[int] = []
    budget = Budget(limit, [(3, 7)], totals.append)
    spent = 0
    flying: list[tuple[int, int, int]] = []
    for given_in, given_out, what, used in steps:
        reserved = budget.reserve(0, given_in, given_out)
        if reserved is not None:
            flying.append((reserved, given_in, given_out))
        if flying and what:
            back, was_in, was_out = flying.pop(0)
            if what == 1:
                out = min(used, was_out)
                budget.settle(0, back, was_in, out)
                spent += 3 * was_in + 7 * out
            else:
                budget.refund(back)
        assert spent + sum(each[0] for each in flying) + totals[-1] == limit


def test_without_usage_the_estimate_stands() -> None:
    totals: list[int] = []
    budget = Budget(100, [(1, 1)], totals.append)
    reserved = budget.reserve(0, 10, 10)
    assert reserved == 20
    budget.settle(0, reserved, UNKNOWN, 3)
    assert totals[-1] == 80


def test_the_dearest_reply_so_far_is_what_the_next_one_reserves() -> None:
    """With the first estimate for ever, a budget was overspent four times over by replies that nothing limits."""
    left: list[int] = []
    budget = Budget(10_000, [(1, 1), (1, 1)], left.append)
    first = budget.reserve(0, 10, 256)
    assert first == 266
    budget.settle(0, first, 10, 4_000)
    assert budget.reserve(0, 10, 256) == 4_010
    assert budget.reserve(1, 10, 256) == 266  # another target's replies are its own
    assert budget.reserve(0, 10, 256) is None
    budget.settle(0, 4_010, 10, 20)
    assert left[-1] == 10_000 - 4_010 - 266 - 30


def plan(folder: Path, url: str, usd: float, workload: str, load: str) -> str:
    (folder / "plan.yaml").write_text(
        f"target: {{base_url: '{url}/v1', model: m, {PRICE}}}\nworkload: {workload}\n{load}\n"
        f"limits: {{budget_usd: {usd}}}\n"
    )
    return "plan.yaml"


@pytest.mark.slow
def test_later_turns_of_sessions_are_paid_from_the_same_purse(tmp_path: Path) -> None:
    turns = [{"user": f"turn {i}"} for i in range(10)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"turns": turns}) + "\n" for _ in range(20)))
    usd = 0.02
    with simulator(**FAST) as sim:
        workload = "{sessions: s.jsonl, output_tokens: 6, think_time: 5ms}"
        summary = measured(
            plan(tmp_path, sim.base_url, usd, workload, "load: {concurrency: 5}\nduration: 10s"), cwd=tmp_path
        )
    accounts(summary["requests"])
    assert usd * 0.5 < summary["cost"]["usd"] <= usd
    assert summary["requests"]["unsent"]["budget"] > 0


@pytest.mark.slow
def test_a_workers_death_brings_no_new_money(tmp_path: Path) -> None:
    usd = 0.06
    with simulator(ttft_ms=20, itl_ms=2, tokens=6) as sim:
        file = plan(tmp_path, sim.base_url, usd, "{prompt: hello, output_tokens: 6}", "load: {rate: 40}\nduration: 6s")
        with running(file, "--workers", "2", cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path)
            dice = random.Random(5)
            for _ in range(3):
                sleep(dice.uniform(0.4, 0.7))
                pids = json.loads((segments / "run.json").read_text())["pids"]
                os.kill(pids[f"worker-{dice.randrange(2)}"], signal.SIGKILL)
            ended = finish(process)
        received = sim.stats()["requests"]
    accounts(ended.summary["requests"])
    dearest = ended.summary["metrics"]["cost_usd"]["max"]
    assert ended.summary["requests"]["failed"]["lost"] >= 1
    assert received * dearest <= usd  # also what was lost had been paid for
    assert ended.summary["requests"]["unsent"]["budget"] > 0
