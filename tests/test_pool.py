"""The pool of one target by itself: what it says of requests that it has, and of those that it does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llm_latency_lens.engine.clock import StampClock
from llm_latency_lens.engine.dialects.openai import ChatReply, OpenAIChat
from llm_latency_lens.engine.plan.plan import Target
from llm_latency_lens.engine.records.lag import LAG_BUCKETS
from llm_latency_lens.engine.records.record import Outcome
from llm_latency_lens.engine.wire.endpoint import Endpoint
from llm_latency_lens.engine.wire.exchange import Exchange
from llm_latency_lens.engine.wire.pool import Pool
from llm_latency_lens.engine.wire.reactor import Reactor

DEADLINE_S = 10.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor(StampClock(), memoryview(bytearray(LAG_BUCKETS * 8)).cast("Q"))
    yield made
    made.close()


def pool_of(reactor: Reactor, base_url: str, ended: list[Exchange]) -> Pool:
    target = Target(name="t", provider="openai", base_url=base_url)
    return Pool(
        reactor,
        target,
        OpenAIChat(),
        Endpoint(target, {}),
        sending=lambda _exchange: None,
        done=ended.append,
        suspect=lambda stamp_ns, _now_ns: (stamp_ns, True),
    )


def an_exchange() -> Exchange:
    made = Exchange(0, 0, 0, 0, 0, b"GET / HTTP/1.1\r\n\r\n")
    made.begin_attempt(ChatReply())
    return made


def test_a_request_whose_time_ends_while_its_name_is_resolved_fails_and_is_never_sent(reactor: Reactor) -> None:
    """A slow resolver: taken for a request between two attempts, it would be recorded as ok and connect later."""
    ended: list[Exchange] = []

    async def main() -> None:
        pool = pool_of(reactor, "http://localhost:9/v1", ended)
        exchange = an_exchange()
        pool.send(exchange)
        assert pool.lookup is not None
        exchange.end_ns = 5  # as the sweep of the deadlines sets it
        assert pool.abandon(exchange, Outcome.CONNECT_TIMEOUT, "no connection within 1 s")
        await asyncio.wait_for(pool.lookup, DEADLINE_S)
        assert not pool.busy
        assert not pool.abandon(exchange, Outcome.CANCELLED, "")
        assert (exchange.outcome, exchange.end_ns) == (Outcome.CONNECT_TIMEOUT, 5)
        assert ended == [exchange]
        pool.close()

    asyncio.run(main())


def test_a_request_that_was_never_handed_over_is_not_the_pools(reactor: Reactor) -> None:
    """The worker asks every pool's abandon() first; only a False lets it record a request between two attempts."""
    ended: list[Exchange] = []
    pool = pool_of(reactor, "http://127.0.0.1:9/v1", ended)
    assert not pool.abandon(an_exchange(), Outcome.CANCELLED, "")
    assert not ended
