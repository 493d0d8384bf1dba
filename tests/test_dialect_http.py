"""The generic dialect: what a description makes of events and bodies, and of a prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE, Prompt
from llm_latency_lens.engine.dialects.table import DIALECTS
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Generic
from llm_latency_lens.engine.records.record import UNKNOWN, Outcome
from tests.support_dialects import ASKED, KEY, OLLAMA, TALK, asked, fresh, read, read_whole, target

BOTH = TOKEN | VISIBLE
TGI = Generic(text="/token/text", finish="/details/finish_reason", output_tokens="/details/generated_tokens",
              error="/error", end="/details")  # fmt: skip
MARKED = Generic(text="/t", end_marker="[DONE]")
RAW = Generic(framing="chunks")
ROWS: list[tuple[str, Generic, Any, int]] = [
    ("text", MARKED, {"t": "a"}, BOTH),
    ("text empty", MARKED, {"t": ""}, 0),
    ("text null", MARKED, {"t": None}, 0),
    ("text that is no text", MARKED, {"t": {"a": 1}}, 0),
    ("text in pieces", MARKED, {"t": ["a", "b"]}, BOTH),
    ("elsewhere", MARKED, {"x": "a"}, 0),
    ("the marker", MARKED, b"[DONE]", END),
    ("the marker with blanks", MARKED, b" [DONE]\r", END),
    ("TGI's token", TGI, {"token": {"text": "a"}, "details": None}, BOTH),
    ("TGI's last token", TGI, {"token": {"text": "a"}, "details": {"finish_reason": "length"}}, BOTH | END),
    ("TGI's error", TGI, {"error": "overloaded", "error_type": "x"}, FAILED),
    ("not JSON", TGI, b"nope", FAILED),
    ("any chunk without a pointer", RAW, b"some text", BOTH),
    ("an event that is the text", Generic(), b"word", BOTH),
    ("the whole event by an empty pointer", Generic(text=""), b'"word"', BOTH),
    ("only the time of the end is asked", Generic(end="/done"), {"t": "a"}, 0),
]


@pytest.mark.parametrize(("why", "generic", "event", "bits"), ROWS, ids=[row[0] for row in ROWS])
def test_an_event_is_what_the_description_says(why: str, generic: Generic, event: Any, bits: int) -> None:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    assert fresh("http", http=generic).event(data) == bits


def test_a_stream_ends_where_the_description_says_or_else_with_its_body() -> None:
    assert fresh("http", http=RAW).finished()
    for generic in (MARKED, TGI):
        assert not fresh("http", http=generic).finished()
    reply = fresh("http", http=TGI)
    reply.event(b'{"details": {"finish_reason": "eos_token", "generated_tokens": 5}}')
    assert (reply.finished(), reply.finish, reply.output_tokens) == (True, "eos_token", 5)


@pytest.mark.parametrize(
    ("given_tokens", "counted"), [(5, 5), (5.0, 5), (None, UNKNOWN), ("5", UNKNOWN), (-1, UNKNOWN)]
)
def test_counts_are_numbers_or_unknown(given_tokens: Any, counted: int) -> None:
    reply = fresh("http")
    reply.event(json.dumps(OLLAMA[-1] | {"eval_count": given_tokens}).encode())
    assert reply.output_tokens == counted


def test_a_filter_as_finish_is_content_filtered() -> None:
    reply = fresh("http")
    reply.event(json.dumps(OLLAMA[-1] | {"done_reason": "content_filter"}).encode())
    assert (reply.outcome, reply.finished()) == (Outcome.CONTENT_FILTERED, True)


def test_lines_with_crlf_and_blank_lines_are_read_the_same() -> None:
    wire = b"\r\n".join(json.dumps(each).encode() + b"\r\n" for each in OLLAMA)
    assert read(fresh("http"), [wire]).text == "café ✓\n"


def test_a_whole_reply_is_read_by_the_same_pointers() -> None:
    generic = Generic(framing="none", text="/text", output_tokens="/usage/output", finish="/finish", error="/error")
    body = {"text": "hi", "usage": {"output": 5}, "finish": "stop"}
    got = read_whole(fresh("http", http=generic), json.dumps(body).encode())
    assert (got.text, got.output, got.finish, got.finished, got.bits) == ("hi", 5, "stop", True, BOTH | END)
    failed = fresh("http", http=generic)
    assert failed.body(b'{"error": {"message": "no"}}') & FAILED
    assert (failed.outcome, failed.error) == (Outcome.STREAM_ERROR, "no")


def test_a_finish_reason_that_is_named_must_come() -> None:
    """Or a stream that was cut would count as whole."""
    reply = fresh("http", http=Generic(framing="ndjson", text="/text", finish="/finish"))
    reply.event(b'{"text": "a"}')
    assert not reply.finished()
    reply.event(b'{"text": "b", "finish": "stop"}')
    assert reply.finished()


@pytest.mark.parametrize("body", [b"{}", b'{"error_code": 7}', b"[]", b"null", b'{"text": null}', b'{"text": ""}'])
def test_a_whole_reply_without_what_was_pointed_at_is_malformed(body: bytes) -> None:
    reply = fresh("http", http=Generic(framing="none", text="/text", finish="/finish"))
    assert reply.body(body) & FAILED
    assert reply.outcome is Outcome.STREAM_MALFORMED


def rendered(generic: Generic, prompt: Prompt = ASKED, **changes: Any) -> tuple[str, dict[str, str], Any]:
    found: tuple[str, dict[str, str], Any] = asked("http", prompt, "http://h/x", http=generic, **changes)
    return found


def test_a_request_is_the_template_filled() -> None:
    body = {
        "prompt": "{{prompt}}",
        "n": "{{max_tokens}}",
        "model": "{{model}}",
        "stream": "{{stream}}",
        "chat": "{{messages}}",
        "lang": "in {{language}}",
        "system": "{{system}}",
    }
    prompt = TALK._replace(columns={"language": "German", "prompt": "of the row"})
    url, headers, sent = rendered(Generic(path="/go", body=body), prompt)
    assert url == "http://h/x/go"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert sent == {
        "prompt": "one\n\ntwo\n\nthree",
        "n": 7,
        "model": "m",
        "stream": True,
        "chat": [{"role": "system", "content": "be brief"}, *TALK.messages],
        "lang": "in German",
        "system": "be brief",
    }


def test_a_limit_that_nobody_gave_is_left_out() -> None:
    body = {"prompt": "{{prompt}}", "options": {"num_predict": "{{max_tokens}}"}}
    assert rendered(Generic(body=body))[2] == {"prompt": "how fast", "options": {}}


def test_columns_in_a_path_are_quoted() -> None:
    assert rendered(Generic(path="/models/{{model}}:go", body={}), model="a b/c")[0] == "http://h/x/models/a%20b%2Fc:go"


def test_parameters_join_the_body_and_a_get_needs_none() -> None:
    assert rendered(Generic(body={"a": 1, "b": 1}), parameters={"b": 2})[2] == {"a": 1, "b": 2}
    request = DIALECTS["http"].request(target("http", http=Generic(method="GET", framing="none")), ASKED)
    assert (request.method, request.body) == ("GET", b"")


@pytest.mark.parametrize(
    ("framing", "accept"),
    [
        ("sse", "text/event-stream"),
        ("ndjson", "application/x-ndjson"),
        ("chunks", "*/*"),
        ("none", "application/json"),
    ],
)
def test_what_is_accepted_fits_the_framing(framing: Any, accept: str) -> None:
    assert rendered(Generic(framing=framing, body={}))[1]["Accept"] == accept


WRONG: list[tuple[str, dict[str, Any], Prompt, str]] = [
    ("a pointer that is none", {"http": Generic(body={}, text="message.content")}, ASKED, "text: .*'/'"),
    ("an unknown column", {"http": Generic(body={"a": "{{question}}"})}, ASKED, "question"),
    ("a system prompt with no place", {"http": Generic(body={"a": "{{prompt}}"})}, TALK, "system"),
    ("no description", {"http": None}, ASKED, "needs http"),
]


@pytest.mark.parametrize(("why", "changes", "prompt", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_description_says_what_is_wrong(
    why: str, changes: dict[str, Any], prompt: Prompt, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        DIALECTS["http"].request(target("http", **changes), prompt)
