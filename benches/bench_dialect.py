"""What an event costs in each dialect, and what the chat dialect's short way saves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import FAILED, Reply
from llm_latency_lens.engine.dialects.openai import Chunk, loosely
from llm_latency_lens.engine.dialects.table import DIALECTS
from tests.support_dialects import block_delta, chat, cohere_delta, complete, generated, target

ROUNDS = 1000
RESPONSE = {
    "type": "response.output_text.delta",
    "item_id": "i",
    "sequence_number": 9,
    "delta": " word",
    "logprobs": [],
}
EVENTS: dict[str, Any] = {
    "openai": chat({"content": " word"}, object="chat.completion.chunk", created=1_750_000_000, model="m"),
    "openai-completions": complete(" word", object="text_completion", created=1_750_000_000, model="m"),
    "openai-responses": RESPONSE,
    "azure-openai": chat({"content": " word"}, object="chat.completion.chunk", created=1_750_000_000, model="m"),
    "anthropic": block_delta(0, type="text_delta", text=" word"),
    "google": generated({"text": " word"}, modelVersion="m"),
    "cohere": cohere_delta(text=" word"),
    "http": {"model": "m", "created_at": "2025", "message": {"role": "assistant", "content": " word"}, "done": False},
}


def _per_event(benchmark: Any, reply: Reply, event: bytes) -> None:
    def run() -> int:
        take, bits = reply.event, 0
        for _ in range(ROUNDS):
            bits |= take(event)
        return bits

    assert not benchmark(run) & FAILED
    benchmark.extra_info["ns_per_event"] = round(benchmark.stats["min"] / ROUNDS * 1e9)


@pytest.mark.parametrize("provider", EVENTS)
def test_a_token_event(benchmark: Any, provider: str) -> None:
    _per_event(benchmark, DIALECTS[provider].reply(target(provider)), json.dumps(EVENTS[provider]).encode())


def test_a_token_event_whose_text_is_kept(benchmark: Any) -> None:
    """The long way: every member is looked at."""
    reply = DIALECTS["openai"].reply(target("openai"), keep_text=True)
    _per_event(benchmark, reply, json.dumps(EVENTS["openai"]).encode())


def test_an_event_of_unusual_types_is_read_slowly(benchmark: Any) -> None:
    event = chat({"content": [{"type": "text", "text": " word"}]})
    _per_event(benchmark, DIALECTS["openai"].reply(target("openai")), json.dumps(event).encode())


def test_the_standard_library_for_comparison(benchmark: Any) -> None:
    event = json.dumps(EVENTS["openai"]).encode()
    benchmark(lambda: [json.loads(event)["choices"][0]["delta"].get("content") for _ in range(ROUNDS)])


def test_the_loose_way_alone(benchmark: Any) -> None:
    event = json.dumps(EVENTS["openai"]).encode()
    benchmark(lambda: [loosely(Chunk, event) for _ in range(100)])


def test_a_token_event_whose_text_is_in_the_checksum(benchmark: Any) -> None:
    """The first events of a reply: what the comparison of replies costs each of them."""
    event = json.dumps(EVENTS["openai"]).encode()
    reply = DIALECTS["openai"].reply(target("openai"))

    def run() -> int:
        take, bits = reply.event, 0
        reply.opening_left, reply.heeds_text = ROUNDS, True
        for _ in range(ROUNDS):
            bits |= take(event)
        return bits

    assert not benchmark(run) & FAILED
    benchmark.extra_info["ns_per_event"] = round(benchmark.stats["min"] / ROUNDS * 1e9)
