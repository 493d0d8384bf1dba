"""Google Gemini and Vertex AI: parts, cumulative usage, blocked prompts, both ways to stream, requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.dialects.google import FILTERED
from llm_latency_lens.engine.records.record import UNKNOWN, Outcome
from tests.support_dialects import (
    GENERATED,
    GOOGLE_USAGE,
    KEY,
    SHOWN,
    TALK,
    asked,
    bits_of,
    fresh,
    generated,
    read_whole,
)

BOTH = TOKEN | VISIBLE
TRAPS: list[tuple[str, Any, int]] = [
    ("text", generated({"text": "a"}), BOTH),
    ("text empty", generated({"text": ""}), 0),
    ("a part without text", generated({"thoughtSignature": "c2ln"}), 0),
    ("a thought", generated({"text": "a", "thought": True}), TOKEN),
    ("a thought that says it is none", generated({"text": "a", "thought": False}), BOTH),
    ("thought and text in one", generated({"text": "a", "thought": True}, {"text": "b"}), BOTH),
    ("a call", generated({"functionCall": {"name": "f", "args": {}}}), BOTH),
    ("code", generated({"executableCode": {"code": "1"}}), BOTH),
    ("what the code printed is not generated", generated({"codeExecutionResult": {"output": "1"}}), 0),
    ("usage only", {"usageMetadata": GOOGLE_USAGE}, 0),
    ("candidates empty", {"candidates": []}, 0),
    ("no content", {"candidates": [{"finishReason": "STOP"}]}, 0),
    ("content without parts", {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]}, 0),
    ("feedback without a block", {"promptFeedback": {"safetyRatings": []}}, 0),
    ("text and finish in one", generated({"text": "a"}, finish="STOP"), BOTH),
    ("an error", {"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}, FAILED),
    ("an error as text", {"error": "no"}, FAILED),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("google", event) == bits


FINISHES = [
    *((reason, True, Outcome.CONTENT_FILTERED) for reason in sorted(FILTERED)),
    ("STOP", True, Outcome.OK),
    ("MAX_TOKENS", True, Outcome.OK),
    ("MALFORMED_FUNCTION_CALL", True, Outcome.OK),
    ("FINISH_REASON_UNSPECIFIED", False, Outcome.OK),
]


@pytest.mark.parametrize(("reason", "finished", "outcome"), FINISHES)
def test_a_finish_reason_makes_a_reply_whole_and_tells_its_outcome(
    reason: str, finished: bool, outcome: Outcome
) -> None:
    reply = fresh("google")
    assert reply.event(json.dumps(generated({"text": "a"}, finish=reason)).encode()) == BOTH
    assert (reply.finished(), reply.outcome) == (finished, outcome)


def test_with_several_candidates_the_reply_is_whole_when_all_are() -> None:
    reply = fresh("google")

    def said(index: int, finish: str | None = None) -> None:
        candidate = {"index": index, "content": {"parts": [{"text": "a"}]}} | (
            {"finishReason": finish} if finish else {}
        )
        reply.event(json.dumps({"candidates": [candidate]}).encode())

    said(0)
    said(1)
    said(0, "STOP")
    assert not reply.finished()
    said(1, "STOP")
    assert reply.finished()


def test_vertex_behind_a_gateway_is_known_by_its_path() -> None:
    url, headers, _ = asked("google", base_url="http://gate:9/v1/projects/p/locations/l", model="g")
    assert url == "http://gate:9/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent?alt=sse"
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_a_blocked_prompt_is_content_filtered_and_whole() -> None:
    reply = fresh("google")
    assert reply.event(b'{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}') == 0
    assert (reply.outcome, reply.finish, reply.finished()) == (Outcome.CONTENT_FILTERED, "PROHIBITED_CONTENT", True)


USAGE: list[tuple[str, list[dict[str, int]], tuple[int, ...]]] = [
    ("thoughts are apart and add up", [GOOGLE_USAGE], (9, 5, 2)),
    ("cumulative", [{"promptTokenCount": 9, "candidatesTokenCount": 1}, GOOGLE_USAGE], (9, 5, 2)),
    ("all thought, no text", [{"promptTokenCount": 9, "thoughtsTokenCount": 6}], (9, 6, 6)),
    ("prompt only", [{"promptTokenCount": 9}], (9, UNKNOWN, UNKNOWN)),
    ("tools read too", [{"promptTokenCount": 9, "toolUsePromptTokenCount": 3}], (12, UNKNOWN, UNKNOWN)),
]


@pytest.mark.parametrize(("why", "usages", "counts"), USAGE, ids=[row[0] for row in USAGE])
def test_usage_is_put_together(why: str, usages: list[dict[str, int]], counts: tuple[int, ...]) -> None:
    reply = fresh("google")
    for usage in usages:
        reply.event(json.dumps({"usageMetadata": usage}).encode())
    assert (reply.input_tokens, reply.output_tokens, reply.reasoning_tokens) == counts


def test_an_error_in_the_stream_names_its_status() -> None:
    reply = fresh("google")
    reply.event(b'{"error": {"code": 503, "message": "try later", "status": "UNAVAILABLE"}}')
    assert (reply.outcome, reply.error) == (Outcome.STREAM_ERROR, "UNAVAILABLE: try later")


def test_a_whole_reply_is_one_response_or_an_array_of_them() -> None:
    one = generated({"text": "so", "thought": True}, {"text": "hi"}, finish="STOP", usageMetadata=GOOGLE_USAGE)
    got = read_whole(fresh("google"), json.dumps(one).encode())
    assert (got.text, got.thought, got.output, got.finish, got.finished) == ("hi", "so", 5, "STOP", True)
    assert got.bits & END
    many = read_whole(fresh("google"), json.dumps(GENERATED).encode())
    assert (many.text, many.output, many.finished) == ("café ✓\n", 5, True)


def test_a_whole_reply_without_a_finish_reason_is_none() -> None:
    reply = fresh("google")
    assert reply.body(json.dumps(generated({"text": "hi"})).encode()) & FAILED


URLS = [
    ({}, "http://h/v1beta/models/m:streamGenerateContent?alt=sse"),
    ({"api_version": "v1"}, "http://h/v1/models/m:streamGenerateContent?alt=sse"),
    ({"stream": False}, "http://h/v1beta/models/m:generateContent"),
    ({"base_url": "http://h/v1alpha"}, "http://h/v1alpha/models/m:streamGenerateContent?alt=sse"),
    ({"model": "models/m"}, "http://h/v1beta/models/m:streamGenerateContent?alt=sse"),
    ({"model": "tunedModels/m"}, "http://h/v1beta/tunedModels/m:streamGenerateContent?alt=sse"),
    (
        {"base_url": "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1"},
        "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1"
        "/publishers/google/models/m:streamGenerateContent?alt=sse",
    ),
]


@pytest.mark.parametrize(("changes", "url"), URLS)
def test_the_url_says_model_version_and_way_of_streaming(changes: dict[str, Any], url: str) -> None:
    assert asked("google", **{"base_url": "http://h"} | changes)[0] == url


def test_vertex_takes_a_bearer_token_and_gemini_a_key() -> None:
    assert asked("google")[1]["x-goog-api-key"] == KEY
    vertex = asked("google", base_url="https://aiplatform.googleapis.com/v1/projects/p/locations/global")[1]
    assert vertex["Authorization"] == f"Bearer {KEY}"
    assert "x-goog-api-key" not in vertex


def test_a_request_has_roles_system_and_limit_in_googles_form() -> None:
    body = asked("google", TALK)[2]
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}]}
    assert body["generationConfig"] == {"maxOutputTokens": 7}
    assert "stream" not in body
    assert "model" not in body


def test_a_generation_config_of_the_plan_keeps_its_values_and_gets_the_limit_it_lacks() -> None:
    def config(**given: Any) -> Any:
        return asked("google", TALK, parameters={"generationConfig": given})[2]["generationConfig"]

    assert config(temperature=0) == {"temperature": 0, "maxOutputTokens": 7}
    assert config(maxOutputTokens=3) == {"maxOutputTokens": 3}


def test_pictures_become_inline_data() -> None:
    assert asked("google", SHOWN)[2]["contents"][0]["parts"] == [
        {"text": "what is it"},
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
    ]
