"""The law of the buckets, with a clock that only counts: in any window of t at most limit * t + burst, and no waste."""

from __future__ import annotations

import json
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.load.limits import (
    MINUTE_NS,
    Bucket,
    TargetLimits,
    burst_of,
    limits_of,
    most_workers,
    share_of,
)
from llm_latency_lens.engine.plan.plan import SECOND, Limits, Plan, Workload
from tests.support_lens import accounts, lens
from tests.support_simulator import simulator
from tests.support_workload import target

Charges = list[tuple[int, int]]  # (moment, amount)

asked = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 60)), min_size=1, max_size=40)  # gap before, amount
rates = st.tuples(st.integers(1, 50), st.integers(1, 3_000))  # amount per period in ns


def worst(charges: Charges, amount: int, period_ns: int) -> Fraction:
    """The most that any window was charged beyond limit * t: the highest rise of (charged - limit * t)."""
    total, lowest, most = 0, None, 0
    for at, charged in charges:
        before = total * period_ns - at * amount
        lowest = before if lowest is None else min(lowest, before)
        total += charged
        most = max(most, total * period_ns - at * amount - lowest)
    return Fraction(most, period_ns)


def limits(limit: Limits = Limits(), **keys: Any) -> Plan:  # noqa: B008  # frozen
    return Plan(name="p", targets=(target(**keys),), workload=Workload(), phases=(), limits=limit)


def shares(plan: Plan, workers: int) -> list[TargetLimits]:
    found = [limits_of(plan, plan.targets[0], worker, workers) for worker in range(workers)]
    return [each for each in found if each is not None]


@settings(deadline=None)
@given(rate=rates, burst=st.integers(1, 80), asked=asked)
def test_no_window_is_charged_more_than_limit_x_t_and_burst(
    rate: tuple[int, int], burst: int, asked: list[tuple[int, int]]
) -> None:
    """Providers count in windows that nobody knows: the law has to hold in all of them."""
    bucket, now = Bucket(*rate, burst), 0
    charges: Charges = []
    for gap, amount in asked:
        now += gap
        charges.append((now + bucket.take(now, amount), amount))
    assert charges == sorted(charges, key=lambda charge: charge[0])
    assert worst(charges, *rate) <= max(burst, *(amount for _, amount in charges))


@settings(deadline=None)
@given(rate=rates, burst=st.integers(1, 80), asked=asked)
def test_nobody_waits_a_nanosecond_longer_than_the_law_demands(
    rate: tuple[int, int], burst: int, asked: list[tuple[int, int]]
) -> None:
    """A limit that is not used up measures the limiter instead of the server."""
    bucket, now = Bucket(*rate, burst), 0
    charges: Charges = []
    for gap, amount in asked:
        now += gap
        wait = bucket.take(now, min(amount, burst))
        if wait and amount:
            sooner = [*charges, (now + wait - 1, min(amount, burst))]
            assert worst(sooner, *rate) > burst
        charges.append((now + wait, min(amount, burst)))


@settings(deadline=None)
@given(rate=rates, burst=st.integers(1, 80), asked=asked, returns=st.lists(st.floats(0, 1), min_size=40, max_size=40))
def test_what_comes_back_is_no_second_burst(
    rate: tuple[int, int], burst: int, asked: list[tuple[int, int]], returns: list[float]
) -> None:
    """Estimates that were too high are paid back at any later time, also while others wait for their reserved moment."""
    bucket, now = Bucket(*rate, burst), 0
    charges: Charges = []
    running: list[tuple[int, int, int]] = []  # at, estimated, real
    for (gap, amount), back in zip(asked, returns, strict=False):
        now += gap
        if back > 0.5:
            for each in [each for each in running if each[0] <= now]:
                _, estimated, real = each
                bucket.settle(estimated, real)
                charges.append((now, real - estimated))
                running.remove(each)
        at = now + bucket.take(now, amount)
        charges.append((at, amount))
        running.append((at, amount, int(amount * back)))
    charges.sort(key=lambda charge: charge[0])
    assert worst(charges, *rate) <= max(burst, *(amount for _, amount in asked))


@pytest.mark.parametrize("workers", [1, 3])
def test_tokens_that_came_back_are_used(workers: int) -> None:
    """Estimates are three times too high and settle 2 s later, with a queue all the time: 98 % of the limit is used."""
    sent: Charges = []
    for limiter in shares(limits(tpm=60_000, burst_s=5), workers):
        now, running = 0, deque[int]()
        while now < 600 * SECOND:
            while running and running[0] + 2 * SECOND <= now:
                running.popleft()
                limiter.settle(300, 100)
            at = now + limiter.take(now, 300)
            running.append(at)
            sent.append((at, 100))
            now = max(now, at - SECOND)  # asked for up to a second ahead
    sent = sorted(charge for charge in sent if charge[0] < 600 * SECOND)
    assert sum(tokens for _, tokens in sent) >= 0.98 * 600_000
    assert worst(sent, 60_000, MINUTE_NS) <= max(5000, workers * 300)


def test_too_low_an_estimate_is_owed() -> None:
    """Otherwise a run with low estimates exceeds its token limit for ever."""
    bucket = Bucket(1, SECOND, 10)
    assert bucket.take(0, 10) == 0
    bucket.settle(10, 25)
    assert bucket.take(0, 1) == 16 * SECOND


def test_a_request_beyond_the_burst_goes_from_a_full_bucket_and_leaves_debt() -> None:
    """It could never go otherwise, and all behind it would wait with it."""
    bucket = Bucket(1, SECOND, 10)
    assert bucket.take(0, 35) == 0
    assert bucket.take(0, 35) == 35 * SECOND  # 25 of debt, 10 to be full again
    assert bucket.take(35 * SECOND, 1) == 26 * SECOND


def test_an_emptied_bucket_has_no_burst() -> None:
    """A worker that takes over from a dead one must not spend the burst a second time."""
    bucket = Bucket(1, SECOND, 10)
    bucket.empty(100 * SECOND)
    assert bucket.take(100 * SECOND, 3) == 3 * SECOND
    assert bucket.take(200 * SECOND, 10) == 0


@pytest.mark.parametrize("workers", [1, 3, 4])
@pytest.mark.parametrize("seconds", [60, 900])
def test_a_limit_that_is_wanted_is_used(workers: int, seconds: int) -> None:
    """Rates with awkward fractions: at least 98 % of it, and by all workers together not one request too many."""
    plan = limits(rpm=1234.5, tpm=1_000_000.0 / 7, burst_s=2.0)
    sent: Charges = []
    for limiter in shares(plan, workers):
        now = 0
        while now < seconds * SECOND:
            now += limiter.take(now, 1)
            sent.append((now, 1))
    sent = [charge for charge in sorted(sent) if charge[0] < seconds * SECOND]
    assert 0.98 * 1234.5 * seconds / 60 <= len(sent) <= 1234.5 * seconds / 60 + burst_of(1234.5, 2)


@settings(deadline=None)
@given(
    limit=st.floats(0.01, 1e8),
    burst_s=st.floats(0, 100),
    workers=st.integers(1, 64),
)
def test_shares_are_exact(limit: float, burst_s: float, workers: int) -> None:
    """Together they are the limit itself, and its burst where each has at least one request of it."""
    made = [share_of(limit, burst_s, worker, workers) for worker in range(workers)]
    assert float(sum(rate for rate, _ in made) * MINUTE_NS) == limit
    bursts = [burst for _, burst in made]
    assert sum(bursts) == max(burst_of(limit, burst_s), workers)
    assert max(bursts) - min(bursts) <= 1


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 3000)), min_size=1, max_size=40),
    workers=st.integers(1, 3),
)
def test_all_limits_of_a_target_hold_at_once(asked: list[tuple[int, int]], workers: int) -> None:
    """A large request that waits for tokens holds the small ones behind it: they must not go all at once then."""
    plan = limits(Limits(rpm=90, burst_s=4), rpm=120, tpm=60_000, burst_s=3)
    sent: list[tuple[int, int]] = []
    for worker, limiter in enumerate(shares(plan, workers)):
        now = 0
        for gap, tokens in asked[worker::workers]:
            now += gap
            sent.append((now + limiter.take(now, tokens), tokens))
    sent.sort()
    requests = [(at, 1) for at, _ in sent]
    assert worst(requests, 120, MINUTE_NS) <= 6
    assert worst(requests, 90, MINUTE_NS) <= 6
    assert worst(sent, 60_000, MINUTE_NS) <= workers * 3000


def test_requests_held_back_by_tokens_do_not_go_all_at_once() -> None:
    """A request limit paid while a token limit still holds would be a burst later."""
    (limiter,) = shares(limits(rpm=60, tpm=60_000, burst_s=1), 1)
    first = limiter.take(0, 60_000)
    assert first == 0
    following = [limiter.take(0, 1) for _ in range(4)]
    assert following == [59_001_000_000 + i * SECOND for i in range(4)]


def test_only_given_limits_hold_requests_back() -> None:
    """Requests are held back by a request limit whatever their tokens, by a token limit only by them."""
    assert limits_of(limits(), target(), 0, 1) is None
    (by_requests,), (by_tokens,) = shares(limits(rpm=5), 1), shares(limits(Limits(tpm=5)), 1)
    assert [by_requests.take(0, 100), by_requests.take(0, 100)] == [0, 12 * SECOND]
    assert [by_tokens.take(0, 0), by_tokens.take(0, 0), by_tokens.take(0, 5)] == [0, 0, 0]
    assert by_tokens.take(0, 5) > 0


def test_no_more_workers_than_whole_requests_in_the_burst() -> None:
    """A worker without one request of the burst could not send within the law."""
    table: list[tuple[Plan, int | None, str]] = [
        (limits(), None, "no limit"),
        (limits(tpm=10.0), None, "tokens go into debt"),
        (limits(rpm=600), 10, "600/min for 1 s"),
        (limits(rpm=600, burst_s=0.35), 3, "rounded down"),
        (limits(rpm=3), 1, "less than one request a second"),
        (limits(Limits(rpm=120), rpm=600), 2, "the smaller one"),
    ]
    for plan, expected, why in table:
        assert most_workers(plan) == expected, why


def run(tmp_path: Path, base_url: str, **keys: Any) -> dict[str, Any]:
    """The summary of a run of this plan."""
    plan = {"target": {"provider": "openai", "base_url": f"{base_url}/v1", "model": "m"}, **keys}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ended = lens("run", "plan.json", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    return ended.summary


@pytest.mark.slow
def test_the_server_never_sees_more_than_the_limit(tmp_path: Path) -> None:
    """Demand four times the limit, from two workers: its own log is the judge, with 2 ms for the way."""
    rpm, burst_s = 1200, 0.5
    with simulator(ttft_ms=2, itl_ms=0, tokens=1) as sim:
        summary = run(
            tmp_path, sim.base_url, requests=80, load={"rate": 80}, workers=2,
            limits={"rpm": rpm, "burst": f"{burst_s}s"},
        )  # fmt: skip
        arrivals = sorted(row["arrival_ns"] for row in sim.log())
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == len(arrivals) == 80
    for first in range(80):
        for last in range(first, 80):
            window_s = (arrivals[last] - arrivals[first]) / 1e9 + 0.002
            assert last - first + 1 <= rpm / 60 * window_s + burst_of(rpm, burst_s)
    used = 80 / (rpm / 60 * (arrivals[-1] - arrivals[0]) / 1e9 + burst_of(rpm, burst_s))
    assert used >= 0.98
    assert summary["metrics"]["lateness_ms"]["max"] > 2000  # 80 at 20/s: the last one waited 2.5 s, and says so
