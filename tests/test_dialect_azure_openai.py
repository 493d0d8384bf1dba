"""Azure OpenAI: where requests go, and what its content filters make of a reply."""

from __future__ import annotations

import json

import pytest

from llm_latency_lens.engine.dialects.outcomes import refusal
from llm_latency_lens.engine.records.record import Outcome
from tests.support_dialects import FILTER_RESULTS, KEY, TALK, asked, bits_of, chat, fresh

DATED = "/openai/deployments/m/chat/completions?api-version="
URLS = [
    ("http://h", None, f"http://h{DATED}2024-10-21"),
    ("http://h", "2025-04-01-preview", f"http://h{DATED}2025-04-01-preview"),
    ("http://h/openai", None, f"http://h{DATED}2024-10-21"),
    ("http://h/openai/v1", None, "http://h/openai/v1/chat/completions"),
    ("http://h/openai/v1/", "preview", "http://h/openai/v1/chat/completions?api-version=preview"),
]


@pytest.mark.parametrize(("base_url", "api_version", "url"), URLS)
def test_the_deployment_and_the_version_are_in_the_url(base_url: str, api_version: str | None, url: str) -> None:
    assert asked("azure-openai", base_url=base_url, api_version=api_version)[0] == url


def test_the_key_goes_in_a_header_of_its_own_and_the_limit_by_its_new_name() -> None:
    _, headers, body = asked("azure-openai", TALK)
    assert headers["api-key"] == KEY
    assert "Authorization" not in headers
    assert body["max_completion_tokens"] == 7


def test_a_deployments_name_is_quoted() -> None:
    assert "/deployments/my%20model%2F1/" in asked("azure-openai", model="my model/1")[0]


def test_filter_results_are_neither_a_token_nor_an_error() -> None:
    assert bits_of("azure-openai", FILTER_RESULTS) == 0


def test_a_filtered_reply_is_content_filtered_and_whole() -> None:
    reply = fresh("azure-openai")
    reply.event(json.dumps(chat({}, "content_filter")).encode())
    reply.event(b"[DONE]")
    assert (reply.outcome, reply.finished()) == (Outcome.CONTENT_FILTERED, True)


REFUSALS = [
    ("Azure filtered the prompt", 400, {"code": "content_filter", "message": "no"}, Outcome.CONTENT_FILTERED),
    ("OpenAI filtered the prompt", 400, {"code": "content_policy_violation"}, Outcome.CONTENT_FILTERED),
    ("Google says 400 to a wrong key", 400, {"details": [{"reason": "API_KEY_INVALID"}]}, Outcome.HTTP_AUTH),
    ("any other 400", 400, {"message": "no"}, Outcome.HTTP_INVALID),
    ("a 500 that mentions a filter", 500, {"code": "content_filter"}, Outcome.HTTP_SERVER),
]


@pytest.mark.parametrize(("why", "status", "error", "outcome"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_400_is_what_its_code_says(why: str, status: int, error: dict[str, object], outcome: Outcome) -> None:
    assert refusal(status, json.dumps({"error": error}).encode())[0] is outcome
