"""OpenAI completions: text in choices, a conversation as one text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE
from llm_latency_lens.engine.records.record import Outcome
from tests.support_dialects import OPENAI_USAGE, SHOWN, TALK, asked, bits_of, complete, fresh, read_whole

TRAPS: list[tuple[str, Any, int]] = [
    ("text", complete("a"), TOKEN | VISIBLE),
    ("text empty", complete(""), 0),
    ("text null", {"choices": [{"text": None}]}, 0),
    ("finish", complete("", "stop"), 0),
    ("usage only", {"choices": [], "usage": OPENAI_USAGE}, 0),
    ("usage null", complete("a", usage=None), TOKEN | VISIBLE),
    ("text with its finish", complete("a", "length"), TOKEN | VISIBLE),
    ("text of another type", {"choices": [{"text": 3}]}, 0),
    ("the end", b"[DONE]", END),
    ("an error", {"error": {"message": "no"}}, FAILED),
    ("vLLM's error", {"object": "error", "message": "no"}, FAILED),
]


@pytest.mark.parametrize(("why", "event", "bits"), TRAPS, ids=[row[0] for row in TRAPS])
def test_only_what_carries_a_token_is_one(why: str, event: Any, bits: int) -> None:
    assert bits_of("openai-completions", event) == bits


def test_a_whole_reply_says_all_at_once() -> None:
    body = complete("hi", "length", usage=OPENAI_USAGE)
    got = read_whole(fresh("openai-completions"), json.dumps(body).encode())
    assert (got.text, got.input, got.output, got.finish, got.finished) == ("hi", 9, 5, "length", True)


def test_a_content_filter_ends_as_content_filtered() -> None:
    got = read_whole(fresh("openai-completions"), json.dumps(complete("", "content_filter")).encode())
    assert got.outcome is Outcome.CONTENT_FILTERED


def test_a_conversation_is_sent_as_one_text() -> None:
    url, _, body = asked("openai-completions", TALK, "http://h/v1")
    assert url == "http://h/v1/completions"
    assert body["prompt"] == "be brief\n\none\n\ntwo\n\nthree"
    assert body["max_tokens"] == 7
    assert body["stream_options"] == {"include_usage": True}
    assert asked("openai-completions", SHOWN)[2]["prompt"] == "what is it"
