"""OpenAI chat completions as its many servers send them: traps, odd types, errors, whole replies, requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.records.record import UNKNOWN, UNPRICED_PARTS, Outcome
from tests.support_dialects import (
    KEY,
    OPENAI_USAGE,
    SHOWN,
    TALK,
    asked,
    bits_of,
    chat,
    fresh,
    read_whole,
)

BOTH = TOKEN | VISIBLE
THINKING = [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}]
TRAPS: list[tuple[str, Any, int]] = [
    ("role only", chat({"role": "assistant", "content": ""}), 0),
    ("role only, no content at all", chat({"role": "assistant"}), 0),
    ("content null", chat({"content": None}), 0),
    ("reasoning empty", chat({"reasoning_content": "", "content": ""}), 0),
    ("usage only", {"choices": [], "usage": OPENAI_USAGE}, 0),
    ("usage null beside content", chat({"content": "a"}, usage=None), BOTH),
    ("usage in every chunk", chat({"content": "a"}, usage=OPENAI_USAGE), BOTH),
    ("finish without content", chat({}, "stop"), 0),
    ("finish without delta", {"choices": [{"index": 0, "finish_reason": "stop"}]}, 0),
    ("Azure's prompt filter results", {"choices": [], "prompt_filter_results": [{}]}, 0),
    ("Azure's late filter results", {"choices": [{"index": 0, "content_filter_offsets": {}}]}, 0),
    ("choices null", {"choices": None}, 0),
    ("role, content and finish in one", chat({"role": "assistant", "content": "all"}, "stop"), BOTH),
    ("reasoning of DeepSeek and SGLang", chat({"reasoning_content": "so", "content": None}), TOKEN),
    ("reasoning of vLLM", chat({"reasoning": "so"}), TOKEN),
    ("reasoning and content in one", chat({"reasoning_content": "so", "content": "a"}), BOTH),
    ("a tool call's name", chat({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}), BOTH),
    ("a tool call's arguments", chat({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), BOTH),
    ("a tool call that says nothing", chat({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}), 0),
    ("tool calls empty", chat({"tool_calls": []}), 0),
    ("the old function call", chat({"function_call": {"name": "f"}}), BOTH),
    ("a refusal", chat({"refusal": "I cannot"}), BOTH),
    ("second of two choices", {"choices": [{"delta": {}}, {"delta": {"content": "b"}}]}, BOTH),
    ("content as parts", chat({"content": [{"type": "text", "text": "a"}]}), BOTH),
    ("Mistral's thinking part", chat({"content": THINKING}), TOKEN),
    ("content of another type", chat({"content": {"new": 1}}), 0),
    ("half a surrogate pair", b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', BOTH),
    ("audio", chat({"audio": {"id": "a", "data": "UklG"}}), BOTH),
    ("audio's transcript", chat({"audio": {"transcript": "hi"}}), BOTH),
    ("audio that ends", chat({"audio": {"id": "a", "expires_at": 1}}), 0),
    ("an image", chat({"images": [{"type": "image_url", "image_url": {"url": "data:"}}]}), BOTH),
    ("an error null beside content", chat({"content": "a"}, error=None), BOTH),
    ("the end", b"[DONE]", END),
    ("the end with blanks", b" [DONE] ", END),
]
ERRORS: list[tuple[str, Any, bytes, Outcome, str]] = [
    ("OpenAI's", {"error": {"message": "went wrong", "type": "server_error"}}, b"", Outcome.STREAM_ERROR, "went wrong"),
    ("as text (TGI, Ollama)", {"error": "went wrong", "error_type": "x"}, b"", Outcome.STREAM_ERROR, "went wrong"),
    ("named (llama.cpp)", {"message": "went wrong", "code": 500}, b"error", Outcome.STREAM_ERROR, "went wrong"),
    ("vLLM's", {"object": "error", "message": "went wrong"}, b"", Outcome.STREAM_ERROR, "went wrong"),
    ("with choices", chat({}, "error", error={"message": "upstream"}), b"", Outcome.STREAM_ERROR, "upstream"),
    ("as finish reason", chat({}, "error"), b"", Outcome.STREAM_ERROR, "finish_reason error"),
    ("DeepSeek's", chat({}, "insufficient_system_resource"), b"", Outcome.STREAM_ERROR, "insufficient"),
    ("without words", {"error": {"code": 1}}, b"", Outcome.STREAM_ERROR, "1"),
    ("a content filter", {"error": {"code": "content_filter", "message": "no"}}, b"", Outcome.CONTENT_FILTERED, "no"),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("openai", event) == bits


@pytest.mark.parametrize(("why", "event", "name", "outcome", "message"), ERRORS, ids=[row[0] for row in ERRORS])
def test_every_form_of_an_error_fails_with_its_message(
    why: str, event: Any, name: bytes, outcome: Outcome, message: str
) -> None:
    reply = fresh("openai")
    assert reply.event(json.dumps(event).encode(), name) & FAILED
    assert reply.outcome is outcome
    assert message in reply.error
    assert not reply.finished()


def test_a_content_filter_and_a_refusal_end_as_content_filtered() -> None:
    for events in ([chat({}, "content_filter")], [chat({"refusal": "no"}), chat({}, "stop")]):
        reply = fresh("openai")
        assert not any(reply.event(json.dumps(event).encode()) & FAILED for event in events)
        reply.event(b"[DONE]")
        assert reply.outcome is Outcome.CONTENT_FILTERED
        assert reply.finished()


def test_usage_that_never_comes_is_unknown() -> None:
    reply = fresh("openai")
    reply.event(json.dumps(chat({"content": "a"}, "stop", usage=None)).encode())
    counts = (reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens)
    assert counts == (UNKNOWN,) * 4


def test_usage_details_null_leave_the_counts_that_are_there() -> None:
    reply = fresh("openai")
    usage = {"prompt_tokens": 3, "completion_tokens": "4", "prompt_tokens_details": None}
    reply.event(json.dumps({"choices": [], "usage": usage}).encode())
    assert (reply.input_tokens, reply.output_tokens, reply.cached_tokens) == (3, 4, UNKNOWN)


WHOLE = {
    "id": "c",
    "choices": [{"message": {"content": "hi", "reasoning_content": "so", "refusal": None}, "finish_reason": "stop"}],
    "usage": OPENAI_USAGE,
}


def test_a_whole_reply_says_all_at_once() -> None:
    got = read_whole(fresh("openai"), json.dumps(WHOLE).encode())
    assert (got.text, got.thought, got.input, got.cached, got.output, got.reasoning) == ("hi", "so", 9, 4, 5, 2)
    assert (got.finish, got.outcome, got.finished) == ("stop", Outcome.OK, True)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"error": {"message": "no"}}', Outcome.STREAM_ERROR),
        (b'{"detail": "what is this"}', Outcome.STREAM_MALFORMED),
        (b"data: [DONE]", Outcome.STREAM_MALFORMED),
        (b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}', Outcome.CONTENT_FILTERED),
    ],
)
def test_a_whole_reply_that_is_not_one_ends_in_its_outcome(body: bytes, outcome: Outcome) -> None:
    reply = fresh("openai")
    reply.body(body)
    assert reply.outcome is outcome


def test_a_request_streams_asks_for_usage_and_carries_system_and_limit() -> None:
    url, headers, body = asked("openai", TALK, "http://h:1/v1")
    assert url == "http://h:1/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Accept"] == "text/event-stream"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 7
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("host", ["api.openai.com", "eu.api.openai.com", "us.api.openai.com"])
def test_openai_itself_is_given_max_completion_tokens(host: str) -> None:
    _, _, body = asked("openai", TALK, f"https://{host}/v1")
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body


def test_stream_options_of_the_plan_stand_beside_the_wish_for_usage() -> None:
    options = {"stream_options": {"include_obfuscation": False}}
    _, _, body = asked("openai", parameters=options)
    assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    _, _, body = asked("openai", parameters={"stream_options": {"include_usage": False}})
    assert body["stream_options"] == {"include_usage": False}


def test_the_targets_system_prompt_stands_in_for_none_of_the_prompt() -> None:
    assert asked("openai", system="short")[2]["messages"][0] == {"role": "system", "content": "short"}
    assert asked("openai", TALK, system="short")[2]["messages"][0]["content"] == "be brief"


def test_a_request_without_a_stream_says_so() -> None:
    _, headers, body = asked("openai", stream=False)
    assert body["stream"] is False
    assert "stream_options" not in body
    assert headers["Accept"] == "application/json"


def test_pictures_pass_through() -> None:
    assert asked("openai", SHOWN)[2]["messages"] == list(SHOWN.messages)


PROMPT = {"prompt_tokens": 32, "completion_tokens": 2}
XAI = PROMPT | {"total_tokens": 614, "completion_tokens_details": {"reasoning_tokens": 580}}
USAGES: list[tuple[str, Any, tuple[int, int, int, int]]] = [
    ("xAI: reasoning beside the completion", chat({}, usage=XAI), (32, UNKNOWN, 582, 580)),
    ("reasoning within the completion", chat({}, usage=XAI | {"completion_tokens": 582}), (32, UNKNOWN, 582, 580)),
    ("no total to say so", chat({}, usage=XAI | {"total_tokens": None}), (32, UNKNOWN, 2, 580)),
    (
        "Moonshot: in the choice",
        {"choices": [{"delta": {}, "finish_reason": "stop", "usage": PROMPT}]},
        (32, UNKNOWN, 2, UNKNOWN),
    ),
    ("Groq: in x_groq", chat({}, "stop", x_groq={"id": "r", "usage": PROMPT}), (32, UNKNOWN, 2, UNKNOWN)),
    ("cached_tokens at the top", chat({}, usage=PROMPT | {"cached_tokens": 7}), (32, 7, 2, UNKNOWN)),
    ("DeepSeek's cache hits", chat({}, usage=PROMPT | {"prompt_cache_hit_tokens": 8}), (32, 8, 2, UNKNOWN)),
    ("zeros for unknown", chat({}, usage={"prompt_tokens": 0, "completion_tokens": 0}), (UNKNOWN,) * 4),
]


@pytest.mark.parametrize(("why", "event", "counts"), USAGES, ids=[row[0] for row in USAGES])
def test_usage_is_found_wherever_a_server_puts_it(why: str, event: Any, counts: tuple[int, ...]) -> None:
    """Lost reasoning tokens made a cost 90x too low and a budget overspent 28x."""
    reply = fresh("openai")
    reply.event(json.dumps(event).encode())
    assert (reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens) == counts


BILLED = [
    {"num_search_queries": 1},
    {"citation_tokens": 400},
    {"num_sources_used": 3},
    {"prompt_tokens_details": {"audio_tokens": 9}},
    {"completion_tokens_details": {"audio_tokens": 9}},
]


@pytest.mark.parametrize("part", BILLED, ids=[str(part) for part in BILLED])
def test_a_part_with_a_price_of_its_own_makes_the_cost_unknown(part: dict[str, Any]) -> None:
    reply = fresh("openai")
    reply.event(json.dumps(chat({}, usage=PROMPT | part)).encode())
    assert reply.flags & UNPRICED_PARTS


def test_parts_of_zero_leave_the_cost_known() -> None:
    """OpenAI sends audio_tokens: 0 with every reply."""
    reply = fresh("openai")
    details = {"prompt_tokens_details": {"audio_tokens": 0}, "completion_tokens_details": {"audio_tokens": 0}}
    reply.event(json.dumps(chat({}, usage=PROMPT | details)).encode())
    assert not reply.flags
