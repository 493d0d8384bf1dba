"""Anthropic messages: blocks and deltas, usage in two places, errors, whole replies, requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.records.record import UNKNOWN, Outcome
from tests.support_dialects import KEY, MESSAGES, SHOWN, TALK, asked, bits_of, block_delta, fresh, read_whole

BOTH = TOKEN | VISIBLE


def start(**block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": 0, "content_block": block}


TRAPS: list[tuple[str, Any, int]] = [
    ("message start", MESSAGES[0], 0),
    ("ping", {"type": "ping"}, 0),
    ("text", block_delta(0, type="text_delta", text="a"), BOTH),
    ("text empty", block_delta(0, type="text_delta", text=""), 0),
    ("thinking", block_delta(0, type="thinking_delta", thinking="a"), TOKEN),
    ("thinking empty", block_delta(0, type="thinking_delta", thinking=""), 0),
    ("signature", block_delta(0, type="signature_delta", signature="c2ln"), 0),
    ("citation", block_delta(0, type="citations_delta", citation={"cited_text": "a"}), 0),
    ("a call's arguments", block_delta(0, type="input_json_delta", partial_json="{"), BOTH),
    ("a call's arguments empty", block_delta(0, type="input_json_delta", partial_json=""), 0),
    ("a call's name", start(type="tool_use", id="t", name="f", input={}), BOTH),
    ("a server tool's result is not generated", start(type="web_search_tool_result", content=[{"title": "x"}]), 0),
    ("a text block begins empty", start(type="text", text=""), 0),
    ("a text block begins with text", start(type="text", text="a"), BOTH),
    ("redacted thinking", start(type="redacted_thinking", data="c2ln"), TOKEN),
    ("block stop", {"type": "content_block_stop", "index": 0}, 0),
    ("message delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": None}, 0),
    ("message stop", {"type": "message_stop"}, END),
    ("an error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, FAILED),
    ("an error without words", {"type": "error"}, FAILED),
    ("text in other clothes", block_delta(0, type="text_delta", text=[{"text": "a"}]), BOTH),
    ("a delta that is none", {"type": "content_block_delta", "delta": 3}, 0),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("anthropic", event) == bits


def test_the_events_name_stands_in_for_a_type_that_is_missing() -> None:
    assert bits_of("anthropic", {"delta": {"text": "a"}}, b"content_block_delta") == BOTH


def usage_after(*events: Any) -> tuple[int, int, int, int]:
    reply = fresh("anthropic")
    for event in events:
        reply.event(json.dumps(event).encode())
    return reply.input_tokens, reply.cached_tokens, reply.cache_write_tokens, reply.output_tokens


def started(**usage: int) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "m", "usage": usage}}


def updated(**usage: int) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": None}, "usage": usage}


USAGE: list[tuple[str, list[Any], tuple[int, ...]]] = [
    (
        "cached tokens are apart and add up",
        [started(input_tokens=3, cache_read_input_tokens=4, cache_creation_input_tokens=2), updated(output_tokens=5)],
        (9, 4, 2, 5),
    ),
    ("output is cumulative", [updated(output_tokens=2), updated(output_tokens=5)], (UNKNOWN, UNKNOWN, UNKNOWN, 5)),
    ("the start's output is a guess", [started(input_tokens=3, output_tokens=1)], (3, UNKNOWN, UNKNOWN, UNKNOWN)),
    (
        "input that is only reported at the end",
        [started(), updated(input_tokens=7, output_tokens=5)],
        (7, UNKNOWN, UNKNOWN, 5),
    ),
    (
        "input reported twice is not added",
        [started(input_tokens=3, cache_read_input_tokens=4), updated(input_tokens=3, output_tokens=5)],
        (7, 4, UNKNOWN, 5),
    ),
]


@pytest.mark.parametrize(("why", "events", "counts"), USAGE, ids=[row[0] for row in USAGE])
def test_usage_is_put_together(why: str, events: list[Any], counts: tuple[int, ...]) -> None:
    assert usage_after(*events) == counts


def test_an_error_is_named_and_a_refusal_is_content_filtered() -> None:
    reply = fresh("anthropic")
    reply.event(b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')
    assert (reply.outcome, reply.error) == (Outcome.STREAM_ERROR, "overloaded_error: Overloaded")
    reply = fresh("anthropic")
    reply.event(b'{"type":"message_delta","delta":{"stop_reason":"refusal"},"usage":{"output_tokens":1}}')
    assert reply.event(b'{"type":"message_stop"}') == END
    assert reply.outcome is Outcome.CONTENT_FILTERED


def test_a_whole_reply_says_all_at_once() -> None:
    body = {
        "id": "m",
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "so", "signature": "c"},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5},
    }
    got = read_whole(fresh("anthropic"), json.dumps(body).encode())
    assert (got.text, got.thought, got.input, got.cached, got.output) == ("hi", "so", 7, 4, 5)
    assert (got.finish, got.outcome, got.finished) == ("tool_use", Outcome.OK, True)


def test_a_whole_error_fails() -> None:
    reply = fresh("anthropic")
    assert reply.body(b'{"type":"error","error":{"type":"api_error","message":"no"}}') & FAILED
    assert reply.outcome is Outcome.STREAM_ERROR


def test_a_request_has_its_headers_the_system_apart_and_always_a_limit() -> None:
    url, headers, body = asked("anthropic", TALK, "http://h")
    assert url == "http://h/v1/messages"
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert (body["system"], body["max_tokens"], body["stream"]) == ("be brief", 7, True)
    assert body["messages"] == list(TALK.messages)
    assert asked("anthropic")[2]["max_tokens"] == 1024
    assert asked("anthropic", base_url="http://h/v1")[0] == url
    assert asked("anthropic", headers={"Anthropic-Version": "2"})[1]["Anthropic-Version"] == "2"


def test_pictures_become_image_blocks() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert asked("anthropic", SHOWN)[2]["messages"][0]["content"] == [
        {"type": "text", "text": "what is it"},
        {"type": "image", "source": source},
    ]
    linked = SHOWN._replace(
        messages=({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]},)
    )
    assert asked("anthropic", linked)[2]["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "http://x/a.png"}}
    ]
