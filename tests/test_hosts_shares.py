"""How the workers of a run are numbered over its hosts, so that nothing is asked twice and nothing is left out."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.hosts.files import check_files, digests, plan_files
from llm_latency_lens.engine.hosts.shares import slots_of, spans
from llm_latency_lens.engine.load.limits import share_of
from llm_latency_lens.engine.load.models import schedule_of
from llm_latency_lens.engine.load.phase_run import in_flight_cap
from llm_latency_lens.engine.load.schedule import Closed
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.workload import source_of
from tests.support_hosts import made

OPEN = "target: {base_url: 'http://h/v1', model: m}\nload: {rate: 50, arrivals: %s}\nduration: 4s\nseed: 7\n"
PROMPTS = "workload: {prompts: {synthetic: {input_tokens: {mean: 40, stddev: 10}}}, salt: none}\n"


def intended(plan: Plan, hosts: list[int]) -> list[tuple[int, int, str]]:
    """(slot, offset, prompt) of every request that the hosts would send; `hosts` is the number of workers of each."""
    found = []
    total = sum(hosts)
    source = source_of(plan, seed=plan.seed)
    for span in spans(plan, hosts):
        for worker in range(span.first, span.first + span.size):
            schedule = schedule_of(plan.phases[0], seed=plan.seed, index=0)
            items = source.items(worker, total, 0, phase=0)
            for (slot, offset_ns), item in zip(schedule.share(worker, total), items, strict=False):
                text = hashlib.sha256(repr(item.prompt.messages).encode()).hexdigest()
                found.append((slot, offset_ns, text))
    return sorted(found)


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:0.5"])
def test_one_two_and_three_hosts_send_the_same_requests_at_the_same_times(arrivals: str) -> None:
    """The schedule is that of the plan and its seed: a run may be repeated on another number of hosts, and compared."""
    plan = made(OPEN % arrivals + PROMPTS)
    alone = intended(plan, [1])
    assert len(alone) > 100
    assert intended(plan, [1, 1]) == intended(plan, [2, 1]) == intended(plan, [1, 3, 2]) == alone


@given(st.integers(0, 10_000), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_shares_of_the_slots_add_up(slots: int, hosts: list[int]) -> None:
    """planned = sent + unsent must hold for each host by itself, or a lost one could not be accounted for."""
    found = spans(made(OPEN % "constant"), hosts)
    shares = [slots_of(slots, span, sum(hosts)) for span in found]
    assert sum(share for share in shares if share is not None) == slots
    for span, share in zip(found, shares, strict=True):
        mine = range(span.first, span.first + span.size)
        assert share == sum(1 for slot in range(slots) if slot % sum(hosts) in mine)


def test_limits_and_permits_are_split_over_all_hosts_exactly() -> None:
    """A limit that each host had for itself would be exceeded by their number."""
    plan = made("target: {base_url: 'http://h/v1', model: m}\nload: {concurrency: 10}\nrequests: 50\n")
    found = spans(plan, [2, 1, 4])
    workers = [worker for span in found for worker in range(span.first, span.first + span.size)]
    assert workers == list(range(7))
    closed = schedule_of(plan.phases[0], seed=0, index=0)
    assert isinstance(closed, Closed)
    assert sum(closed.limit(0, worker, 7) for worker in workers) == 10
    rates, bursts = zip(*(share_of(100, 60, worker, 7) for worker in workers), strict=True)
    assert sum(rates, Fraction(0)) * 60 * 10**9 == 100
    assert sum(bursts) == 100
    capped = made("target: {base_url: 'http://h/v1', model: m}\nload: {rate: 5, max_in_flight: 9}\nduration: 1s\n")
    assert sum(in_flight_cap(capped.phases[0].load, worker, 7, 10**6) for worker in workers) == 9


def test_hosts_get_fewer_workers_where_the_plan_has_less_to_split() -> None:
    """A worker without a permit would hold slots that it never sends."""
    plan = made("target: {base_url: 'http://h/v1', model: m}\nload: {concurrency: 5}\nrequests: 50\n")
    assert [span.size for span in spans(plan, [4, 2, 1])] == [2, 2, 1]


def test_more_hosts_than_the_plan_can_be_split_among_are_refused() -> None:
    """Nobody may wait for a host that has nothing to do."""
    plan = made("target: {base_url: 'http://h/v1', model: m}\nload: {concurrency: 2}\nrequests: 50\n")
    with pytest.raises(PlanError, match="at most 2 hosts"):
        spans(plan, [1, 1, 1])


def test_a_host_without_the_plans_file_is_told_which_one(tmp_path: Path) -> None:
    """With another file it would ask other questions than its peers, and nobody would see it."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n')
    plan = made(f"target: {{base_url: 'http://h/v1', model: m}}\nworkload: {{prompts: {{file: {prompts}}}}}\n")
    expected = digests(plan_files(plan))
    assert list(expected) == [str(prompts)]
    check_files(expected)
    prompts.write_text('{"prompt": "two"}\n')
    with pytest.raises(PlanError, match=r"prompts\.jsonl is not the driver's file"):
        check_files(expected)
    prompts.unlink()
    with pytest.raises(PlanError, match=r"prompts\.jsonl is not on this host"):
        check_files(expected)
