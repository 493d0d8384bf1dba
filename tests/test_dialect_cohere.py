"""Cohere chat, version 2: content items, tool plans and calls, errors in the last event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.records.record import UNKNOWN, Outcome
from tests.support_dialects import COHERE, KEY, TALK, asked, bits_of, cohere_delta, fresh, read_whole

BOTH = TOKEN | VISIBLE


def tools(kind: str, **message: Any) -> dict[str, Any]:
    return {"type": kind, "index": 0, "delta": {"message": message}}


def ended(reason: str | None, **delta: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason} | delta}


CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}
TRAPS: list[tuple[str, Any, int]] = [
    ("message start", COHERE[0], 0),
    ("content start", tools("content-start", content={"type": "text", "text": ""}), 0),
    ("content start with text", tools("content-start", content={"type": "text", "text": "a"}), BOTH),
    ("text", cohere_delta(text="a"), BOTH),
    ("text empty", cohere_delta(text=""), 0),
    ("thinking", cohere_delta(thinking="a"), TOKEN),
    ("tool plan", tools("tool-plan-delta", tool_plan="I will"), TOKEN),
    ("a call's name", tools("tool-call-start", tool_calls=CALL), BOTH),
    ("a call's arguments", tools("tool-call-delta", tool_calls={"function": {"arguments": "{"}}), BOTH),
    ("a call's end", {"type": "tool-call-end", "index": 0}, 0),
    ("citation", {"type": "citation-start", "delta": {"message": {"citations": {"text": "a"}}}}, 0),
    ("debug", {"type": "debug", "prompt": "a"}, 0),
    ("content end", {"type": "content-end", "index": 0}, 0),
    ("the end", ended("COMPLETE"), END),
    ("an error as the end", ended("ERROR", error="no"), END | FAILED),
    ("a timeout as the end", ended("TIMEOUT"), END | FAILED),
    ("an error object", {"message": "no"}, FAILED),
    ("a delta of another type", {"type": "content-delta", "delta": [1]}, 0),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("cohere", event) == bits


ENDS = [
    ("COMPLETE", Outcome.OK, True),
    ("MAX_TOKENS", Outcome.OK, True),
    ("TOOL_CALL", Outcome.OK, True),
    ("STOP_SEQUENCE", Outcome.OK, True),
    ("ERROR_TOXIC", Outcome.CONTENT_FILTERED, True),
    ("ERROR", Outcome.STREAM_ERROR, False),
    ("TIMEOUT", Outcome.STREAM_ERROR, False),
]


@pytest.mark.parametrize(("reason", "outcome", "finished"), ENDS)
def test_the_finish_reason_tells_the_outcome(reason: str, outcome: Outcome, finished: bool) -> None:
    reply = fresh("cohere")
    reply.event(json.dumps(ended(reason)).encode())
    assert (reply.finish, reply.outcome, reply.finished()) == (reason, outcome, finished)


def test_tokens_are_those_processed_or_else_those_billed() -> None:
    reply = fresh("cohere")
    reply.event(json.dumps(ended("COMPLETE", usage={"billed_units": {"input_tokens": 2, "output_tokens": 5}})).encode())
    assert (reply.input_tokens, reply.output_tokens, reply.cached_tokens) == (2, 5, UNKNOWN)


def test_a_whole_reply_says_all_at_once() -> None:
    body = {
        "id": "i",
        "message": {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "hi"}],
            "tool_calls": [CALL],
        },
        "finish_reason": "COMPLETE",
        "usage": {"tokens": {"input_tokens": 9, "output_tokens": 5}},
    }
    got = read_whole(fresh("cohere"), json.dumps(body).encode())
    assert (got.text, got.thought, got.input, got.output, got.finish) == ("hi", "so", 9, 5, "COMPLETE")
    assert got.finished


def test_a_whole_error_fails() -> None:
    reply = fresh("cohere")
    assert reply.body(b'{"id": "i", "message": "invalid request"}') & FAILED
    assert reply.error == "invalid request"


def test_a_request_goes_to_version_two_with_the_system_in_front() -> None:
    url, headers, body = asked("cohere", TALK, "http://h")
    assert url == asked("cohere", base_url="http://h/v2")[0] == "http://h/v2/chat"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert (body["max_tokens"], body["stream"]) == (7, True)
