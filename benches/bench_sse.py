"""What one read costs in the SSE framing: the short way for complete `data:` events beside the general way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_latency_lens.engine.wire.sse import CR, SseFraming

ROUNDS = 1000
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
READS = {"one event": EVENT, "two events": EVENT * 2, "general way": b"event: m\n" + EVENT}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_read(benchmark: Any, read: bytes) -> None:
    """us per 1000 reads are ns per read. An `event:` line sends the same event the general way."""

    def run() -> int:
        framing = SseFraming()
        framing.feed(EVENT)
        feed = framing.feed
        return sum(len(feed(read)) for _ in range(ROUNDS))

    assert benchmark(run) == ROUNDS * read.count(b"data:")


def by_number() -> int:
    return sum(CR in EVENT for _ in range(ROUNDS))


def by_bytes() -> int:
    return sum(b"\r" in EVENT for _ in range(ROUNDS))


@pytest.mark.parametrize("look", [by_number, by_bytes])
def test_looking_for_a_byte_that_is_not_there(benchmark: Any, look: Callable[[], int]) -> None:
    """`int in bytes` beside `bytes in bytes`: the second looks for an integer first and clears the TypeError."""
    assert not benchmark(look)
