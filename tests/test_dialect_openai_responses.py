"""OpenAI responses: deltas by type, three ways to end, errors as events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.records.record import Outcome
from tests.support_dialects import PICTURE, RESPONSE_USAGE, SHOWN, TALK, asked, bits_of, fresh, read_whole

BOTH = TOKEN | VISIBLE


def delta(kind: str, text: Any = "a") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "delta": text}


def ended(status: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"id": "r", "status": status, "usage": RESPONSE_USAGE} | more}


TRAPS: list[tuple[str, Any, int]] = [
    ("created", {"type": "response.created", "response": {"status": "in_progress", "usage": None}}, 0),
    ("queued", {"type": "response.queued", "response": {"status": "queued"}}, 0),
    ("text", delta("output_text"), BOTH),
    ("text empty", delta("output_text", ""), 0),
    ("text null", delta("output_text", None), 0),
    ("text in other clothes", delta("output_text", [{"text": "a"}]), BOTH),
    ("text done repeats what was said", {"type": "response.output_text.done", "text": "a"}, 0),
    ("part done", {"type": "response.content_part.done", "part": {"type": "output_text", "text": "a"}}, 0),
    ("reasoning", delta("reasoning_text"), TOKEN),
    ("reasoning summary", delta("reasoning_summary_text"), TOKEN),
    ("refusal", delta("refusal"), BOTH),
    ("a call's arguments", delta("function_call_arguments", "{"), BOTH),
    ("a custom call's input", delta("custom_tool_call_input"), BOTH),
    ("a call's name", {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}}, BOTH),
    ("a message begins", {"type": "response.output_item.added", "item": {"type": "message", "content": []}}, 0),
    ("what a tool printed is not generated", delta("shell_call_output_content"), 0),
    ("a type of tomorrow", delta("hologram"), 0),
    ("completed", ended("completed"), END),
    ("incomplete", ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), END),
    ("failed", ended("failed", error={"code": "server_error", "message": "no"}), END | FAILED),
    ("an error event", {"type": "error", "code": "server_error", "message": "no", "param": None}, FAILED),
    ("an error event with an object", {"type": "error", "error": {"message": "no"}}, FAILED),
    ("an error without a type", {"error": {"message": "no"}}, FAILED),
    ("the end of another API", b"[DONE]", 0),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("openai-responses", event) == bits


def test_the_events_name_stands_in_for_a_type_that_is_missing() -> None:
    assert bits_of("openai-responses", {"delta": "a"}, b"response.output_text.delta") == BOTH


ENDS: list[tuple[str, list[Any], Outcome, str]] = [
    ("completed", [ended("completed")], Outcome.OK, "completed"),
    (
        "cut by its limit",
        [ended("incomplete", incomplete_details={"reason": "max_output_tokens"})],
        Outcome.OK,
        "max_output_tokens",
    ),
    (
        "filtered",
        [ended("incomplete", incomplete_details={"reason": "content_filter"})],
        Outcome.CONTENT_FILTERED,
        "content_filter",
    ),
    ("refused", [delta("refusal"), ended("completed")], Outcome.CONTENT_FILTERED, "completed"),
    ("failed", [ended("failed", error={"message": "no"})], Outcome.STREAM_ERROR, "failed"),
    ("cancelled", [ended("cancelled")], Outcome.STREAM_ERROR, "cancelled"),
]


@pytest.mark.parametrize(("why", "events", "outcome", "finish"), ENDS, ids=[row[0] for row in ENDS])
def test_every_end_has_its_outcome_and_its_usage(why: str, events: list[Any], outcome: Outcome, finish: str) -> None:
    reply = fresh("openai-responses")
    for event in events:
        reply.event(json.dumps(event).encode())
    assert (reply.outcome, reply.finish) == (outcome, finish)
    assert (reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens) == (9, 4, 5, 2)
    assert reply.request_id == "r"


def test_a_whole_reply_says_all_at_once() -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}], "content": []},
        {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ]
    body = {"id": "r", "object": "response", "status": "completed", "error": None, "output": output}
    got = read_whole(fresh("openai-responses"), json.dumps(body | {"usage": RESPONSE_USAGE}).encode())
    assert (got.text, got.thought, got.output, got.finish, got.finished) == ("hi", "so", 5, "completed", True)


def test_a_whole_reply_with_a_refusal_is_content_filtered() -> None:
    output = [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]
    got = read_whole(fresh("openai-responses"), json.dumps({"status": "completed", "output": output}).encode())
    assert got.outcome is Outcome.CONTENT_FILTERED


def test_a_request_has_instructions_input_and_its_own_name_for_the_limit() -> None:
    url, _, body = asked("openai-responses", TALK, "http://h/v1")
    assert url == "http://h/v1/responses"
    assert body["instructions"] == "be brief"
    assert body["input"] == list(TALK.messages)
    assert body["max_output_tokens"] == 7
    assert "stream_options" not in body


def test_pictures_become_input_images() -> None:
    assert asked("openai-responses", SHOWN)[2]["input"][0]["content"] == [
        {"type": "input_text", "text": "what is it"},
        {"type": "input_image", "image_url": PICTURE},
    ]
