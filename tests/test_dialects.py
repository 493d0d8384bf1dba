"""What holds for every dialect: streams read the same however they are cut, truncation is never whole, nothing raises."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN
from llm_latency_lens.engine.dialects.outcomes import refusal
from llm_latency_lens.engine.dialects.table import DIALECTS, framing_for
from llm_latency_lens.engine.plan.plan import Generic
from llm_latency_lens.engine.records.record import UNKNOWN, UNPRICED_PARTS, Outcome
from llm_latency_lens.engine.wire.exchange import Exchange
from llm_latency_lens.engine.wire.framing import framing_of
from tests.support_dialects import KEY, STREAMS, TALK, asked, bits_of, chat, fresh, outcome_of, read, sse, target

EVERY = sorted(DIALECTS)
# Words that dialects look for, so that made-up JSON comes to where they look.
WORDS = [
    "choices",
    "delta",
    "message",
    "content",
    "text",
    "thinking",
    "reasoning",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "usage",
    "error",
    "type",
    "finish",
    "finish_reason",
    "stop_reason",
    "response",
    "item",
    "output",
    "status",
    "candidates",
    "parts",
    "finishReason",
    "usageMetadata",
    "promptFeedback",
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "promptTokenCount",
    "candidatesTokenCount",
    "id",
    "object",
    "code",
    "content_block",
    "partial_json",
    "done",
    "eval_count",
    "tokens",
    "billed_units",
    "delta",
    "message_delta",
    "content_block_delta",
    "message-end",
    "content-delta",
    "response.completed",
    "response.output_text.delta",
    "message_start",
    "error",
    "stop",
]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_in_one_piece_says_what_it_says(kind: str) -> None:
    stream = STREAMS[kind]
    assert read(fresh(stream.provider), [stream.wire], stream.content_type) == stream.expected


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_cut_at_every_byte_says_the_same(kind: str) -> None:
    stream = STREAMS[kind]
    for cut in range(1, len(stream.wire)):
        pieces = [stream.wire[:cut], stream.wire[cut:]]
        assert read(fresh(stream.provider), pieces, stream.content_type) == stream.expected, cut
    single = [stream.wire[i : i + 1] for i in range(len(stream.wire))]
    assert read(fresh(stream.provider), single, stream.content_type) == stream.expected


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_without_its_end_is_never_whole(kind: str) -> None:
    stream = STREAMS[kind]
    for events in range(len(stream.events)):
        reply = fresh(stream.provider)
        got = read(reply, stream.events[:events], stream.content_type)
        assert not got.finished, f"after {events} events"
        assert not got.bits & FAILED
        assert not reply.ended


@pytest.mark.parametrize("kind", STREAMS)
def test_reading_without_keeping_the_text_gives_the_same_bits(kind: str) -> None:
    stream = STREAMS[kind]
    silent = DIALECTS[stream.provider].reply(target(stream.provider))
    assert read(silent, [stream.wire], stream.content_type) == stream.expected._replace(text="", thought="")


@pytest.mark.parametrize("provider", EVERY)
@pytest.mark.parametrize(
    "event", [b"{", b"nonsense", b'{"a":}', b"[" * 100_000, b"\xff\xfe", b"12", b'"text"', b"null"]
)
def test_what_is_no_object_is_malformed(provider: str, event: bytes) -> None:
    if provider == "http" and event[:1] in (b"1", b'"', b"n") and event != b"nonsense":
        assert bits_of(provider, event) == 0  # a pointer finds nothing there, and that is no error
        return
    reply = fresh(provider)
    assert reply.event(event) == FAILED
    assert reply.outcome is Outcome.STREAM_MALFORMED
    assert reply.error


@pytest.mark.parametrize("provider", EVERY)
@pytest.mark.parametrize("event", [b"", b" ", b"{}", b'{"new_field": [1, {"a": null}]}', b'{"type": "new.event"}'])
def test_nothing_and_the_unknown_are_tolerated(provider: str, event: bytes) -> None:
    assert bits_of(provider, event) == 0


@pytest.mark.parametrize("provider", EVERY)
@pytest.mark.parametrize("body", [b"", b"{", b"<html>busy</html>", b"[]", b"[" * 100_000])
def test_a_whole_reply_that_is_none_is_malformed(provider: str, body: bytes) -> None:
    if provider == "http" and body == b"[]":
        return
    reply = fresh(provider)
    assert reply.body(body) & FAILED
    assert reply.outcome is Outcome.STREAM_MALFORMED


def _json(words: list[str]) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(words)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(words) | st.text(max_size=3), inner, max_size=6)
        ),
        max_leaves=20,
    )


_counts = struct.Struct("<5I")


def _holds(provider: str, data: bytes, name: bytes) -> None:
    """The reply took `data` and can be written to a record."""
    for reply in (fresh(provider), DIALECTS[provider].reply(target(provider))):
        assert 0 <= reply.event(data, name) < 16
        assert 0 <= reply.body(data) < 16
        tokens = (reply.input_tokens, reply.cached_tokens, reply.cache_write_tokens)
        _counts.pack(*tokens, reply.output_tokens, reply.reasoning_tokens)
        assert isinstance(reply.error, str)
        assert reply.finish is None or isinstance(reply.finish, str)
        assert reply.request_id is None or isinstance(reply.request_id, str)
        assert all(isinstance(text, str) for text in (*reply.text, *reply.reasoning_text))


@pytest.mark.slow
@pytest.mark.parametrize("provider", EVERY)
@settings(max_examples=150, deadline=None)
@given(value=_json(WORDS), name=st.sampled_from([b"", b"error", b"\xff", *(word.encode() for word in WORDS)]))
def test_no_json_makes_a_dialect_raise(provider: str, value: Any, name: bytes) -> None:
    _holds(provider, json.dumps(value).encode(), name)


@pytest.mark.parametrize("provider", EVERY)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), name=st.binary(max_size=8))
def test_no_bytes_make_a_dialect_raise(provider: str, data: bytes, name: bytes) -> None:
    _holds(provider, data, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in STREAMS if "CR" not in kind and "array" not in kind])
@settings(max_examples=40, deadline=None)
@given(choice=st.data())
def test_no_event_with_one_member_exchanged_makes_a_dialect_raise(kind: str, choice: st.DataObject) -> None:
    """Real events in which one value, anywhere, is replaced by something else."""
    stream = STREAMS[kind]
    body = choice.draw(st.sampled_from(stream.events)).decode()
    text = body.rpartition("data: ")[2] if "data: " in body else body
    if "{" not in text:
        return
    value = json.loads(text)
    spots: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        here = pending.pop()
        for key in list(here) if isinstance(here, dict) else range(len(here)):
            spots.append((here, key))
            if isinstance(here[key], dict | list):
                pending.append(here[key])
    if spots:
        here, key = choice.draw(st.sampled_from(spots))
        here[key] = choice.draw(_json(WORDS))
    _holds(stream.provider, json.dumps(value).encode(), b"")


def test_errors_nested_without_end_do_not_exhaust_the_stack() -> None:
    deep = b'{"error":' * 500 + b"1" + b"}" * 500
    for provider in EVERY:
        fresh(provider).event(deep)
        fresh(provider).body(deep)


@pytest.mark.parametrize("provider", EVERY)
def test_the_key_is_in_a_header_and_nowhere_else(provider: str) -> None:
    url, headers, body = asked(provider)
    assert KEY not in url
    assert KEY not in json.dumps(body)
    assert sum(KEY in value for value in headers.values()) == 1


@pytest.mark.parametrize("provider", EVERY)
def test_without_a_key_no_header_of_one_is_sent(provider: str) -> None:
    _, headers, _ = asked(provider, api_key=None)
    assert not {"authorization", "x-api-key", "api-key", "x-goog-api-key"} & {name.lower() for name in headers}


@pytest.mark.parametrize("provider", EVERY)
def test_parameters_of_the_plan_win_untouched(provider: str) -> None:
    given_parameters = {"max_tokens": 3, "odd": {"a": [1, None]}, "stream": "mine", "model": "other"}
    _, _, body = asked(provider, TALK, parameters=given_parameters)
    assert given_parameters.items() <= body.items()
    assert 7 not in body.values()  # the prompt's limit gives way to the plan's


@pytest.mark.parametrize("provider", EVERY)
def test_headers_of_the_plan_replace_ours(provider: str) -> None:
    names = [name.lower() for name in asked(provider, headers={"ACCEPT": "x", "X-More": "1"})[1]]
    assert len(names) == len(set(names))
    assert asked(provider, headers={"ACCEPT": "x"})[1]["ACCEPT"] == "x"


@pytest.mark.parametrize("provider", EVERY)
def test_a_trailing_slash_of_the_base_url_changes_nothing(provider: str) -> None:
    assert asked(provider, base_url="http://h/")[0] == asked(provider, base_url="http://h")[0]


def test_a_whole_body_where_a_stream_was_asked_is_one_reply_but_googles_is_an_array() -> None:
    rows = [
        ("openai", "application/json", "none"),
        ("openai", "text/event-stream; charset=utf-8", "sse"),
        ("google", "application/json; charset=UTF-8", "json"),
        ("google", "text/event-stream", "sse"),
        ("http", "application/json", "ndjson"),  # as the plan says, whatever the server calls it
    ]
    for provider, content_type, framing in rows:
        assert framing_for(fresh(provider), content_type) == framing, (provider, content_type)
    plain = Generic(framing="none", text="/t")
    assert framing_for(fresh("http", http=plain), "text/event-stream") == "none"


def test_token_counts_beyond_what_a_record_holds_are_unknown_or_the_most_it_holds() -> None:
    def usage(tokens: Any) -> int:
        reply = fresh("openai")
        reply.event(json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode())
        return reply.output_tokens

    rows = [(0, 0), (5, 5), ("5", 5), (5.0, 5), (-1, UNKNOWN), (None, UNKNOWN), (1 << 70, UNKNOWN - 1), (True, UNKNOWN)]
    for tokens, counted in rows:
        assert usage(tokens) == counted, tokens


@pytest.mark.parametrize("kind", ["chat", "completions", "responses", "anthropic", "google", "cohere", "ollama"])
def test_a_wrong_byte_of_utf8_inside_a_text_is_still_a_token(kind: str) -> None:
    """Servers that send tokens byte by byte cut characters in two; every client replaces what is left of them."""
    stream = STREAMS[kind]
    event = next(event for event in stream.events if "café".encode() in event)
    reply = fresh(stream.provider)
    got = read(reply, [event.replace("é".encode(), b"\xc3")], stream.content_type)
    assert got.bits & TOKEN
    assert got.text == "caf\ufffd"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"error": {"code": "content_filter", "message": "no"}}', Outcome.CONTENT_FILTERED),
        (b'{"error": {"code": "content_policy_violation"}}', Outcome.CONTENT_FILTERED),
        (b'{"error": {"code": "bad", "message": "unknown key \\"content_filter\\" in body"}}', Outcome.HTTP_INVALID),
        (b'{"error": {"code": 7}, "param": "content_filter"}', Outcome.HTTP_INVALID),
        (b"content_filter", Outcome.HTTP_INVALID),
        (b'{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}', Outcome.HTTP_AUTH),
    ],
)
def test_a_refused_prompt_is_told_by_the_errors_code(body: bytes, outcome: Outcome) -> None:
    assert refusal(400, body)[0] is outcome


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"a\\ud83d"', "a\ufffd"),  # half a pair: cut between two events
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"a\xff"', "a\ufffd"),  # no UTF-8
        (b'["a", "\\udc00"]', "a\ufffd"),
    ],
)
def test_text_can_always_be_encoded_again(content: bytes, text: str) -> None:
    """Sessions send it back, details write it down."""
    reply = fresh("openai")
    reply.event(b'{"choices": [{"delta": {"content": ' + content + b"}}]}")
    assert "".join(reply.text).encode() == text.encode()


def test_nan_is_no_json() -> None:
    reply = fresh("openai")
    assert reply.event(b'{"choices": [{"delta": {"content": "a", "n": NaN}}]}') & FAILED
    assert reply.outcome is Outcome.STREAM_MALFORMED


BILLED_APART_OF_TOKENS: list[tuple[str, Any]] = [
    ("anthropic", {"cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 5}}),
    ("anthropic", {"server_tool_use": {"web_search_requests": 1}}),
    ("anthropic", {"iterations": [{"type": "compaction", "input_tokens": 9}, {"type": "message", "input_tokens": 9}]}),
    ("google", {"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}]}),
    ("google", {"candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 9}]}),
    ("cohere", {"billed_units": {"input_tokens": 2, "output_tokens": 3, "search_units": 1}}),
]
PLAIN_USAGE: list[tuple[str, Any]] = [
    ("anthropic", {"cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 0}}),
    ("anthropic", {"server_tool_use": {"web_search_requests": 0}, "iterations": [{"type": "message"}]}),
    ("google", {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}]}),
    ("cohere", {"billed_units": {"input_tokens": 2, "output_tokens": 3}}),
]


def flags_after(provider: str, usage: dict[str, Any]) -> int:
    """The flags of a reply whose usage has these members."""
    event: dict[str, Any] = {
        "anthropic": {"type": "message_delta", "delta": {}, "usage": usage},
        "google": {"usageMetadata": usage},
        "cohere": {"type": "message-end", "delta": {"usage": usage}},
    }[provider]
    reply = fresh(provider)
    reply.event(json.dumps(event).encode())
    return reply.flags & UNPRICED_PARTS


@pytest.mark.parametrize(("provider", "usage"), BILLED_APART_OF_TOKENS)
def test_usage_that_tokens_alone_do_not_price_makes_the_cost_unknown(provider: str, usage: dict[str, Any]) -> None:
    """A wrong cost is worse than none: these were priced as plain text, or not at all."""
    assert flags_after(provider, usage)


@pytest.mark.parametrize(("provider", "usage"), PLAIN_USAGE)
def test_usage_of_plain_tokens_keeps_the_cost_known(provider: str, usage: dict[str, Any]) -> None:
    assert not flags_after(provider, usage)


@pytest.mark.parametrize("provider", EVERY)
def test_a_usage_of_zeros_beside_tokens_is_unknown(provider: str) -> None:
    """Servers that count nothing fill usage with zeros; as a count they make the output rate zero."""
    events: dict[str, Any] = {
        "anthropic": [
            {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}},
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 0}},
        ],
        "google": [{"usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0}}],
        "cohere": [{"type": "message-end", "delta": {"usage": {"tokens": {"input_tokens": 0, "output_tokens": 0}}}}],
        "openai-responses": [
            {"type": "response.completed", "response": {"usage": {"input_tokens": 0, "output_tokens": 0}}}
        ],
        "http": [{"prompt_eval_count": 0, "eval_count": 0}],
    }
    reply = fresh(provider)
    for event in events.get(provider, [{"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}]):
        reply.event(json.dumps(event).encode())
    assert (reply.input_tokens, reply.output_tokens) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize("kind", ["anthropic", "google", "responses", "cohere"])
def test_the_end_marker_of_chat_completions_is_nothing_in_other_streams(kind: str) -> None:
    """Foundry, OpenRouter and Gemini proxies append it to every stream; it made successes malformed."""
    stream = STREAMS[kind]
    assert read(fresh(stream.provider), [stream.wire, b"data: [DONE]\n\n"]) == stream.expected


@pytest.mark.parametrize(
    "provider", ["openai", "openai-completions", "openai-responses", "anthropic", "google", "cohere"]
)
def test_an_error_event_of_plain_text_keeps_its_text(provider: str) -> None:
    reply = fresh(provider)
    assert reply.event(b"upstream went away", b"error") & FAILED
    assert (reply.outcome, reply.error) == (Outcome.STREAM_ERROR, "upstream went away")


JUNK = [
    b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":500,"completion_tokens":300}}\n\n',
    b'data: {"error":{"message":"late"}}\n\n',
    b"data: not JSON\n\n",
]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("kind", [kind for kind, each in STREAMS.items() if each.expected.bits & END])
def test_what_follows_the_end_is_not_read_however_it_is_cut(kind: str, junk: bytes) -> None:
    """Usage was 500/300 in one packet and 5/3 in two: what a reply means must not depend on the packets."""
    stream = STREAMS[kind]
    newline = b"\r" if kind.endswith("CR") else b"\n"
    wire = stream.wire + (junk if stream.provider != "http" else junk[6:-1]).replace(b"\n", newline)
    for cut in range(1, len(wire)):
        reply = fresh(stream.provider)
        exchange = Exchange(0, 0, 0, 0, 0, b"")
        exchange.begin_attempt(reply)
        framing = framing_of(framing_for(reply, stream.content_type))
        for piece in (wire[:cut], wire[cut:]):
            if exchange.take(framing.feed(piece), 1, True, not framing.pending) & (END | FAILED):
                break
        got = outcome_of(reply, [])
        assert got[2:11] == stream.expected[2:11], cut
        assert exchange.token_events == stream.expected.tokens
        assert exchange.events == sum(
            bool(framing_of(framing_for(reply, stream.content_type)).feed(e)) for e in stream.events
        )


@given(cuts=st.lists(st.integers(1, 200), max_size=8))
def test_a_malformed_stream_has_as_many_events_however_it_is_cut(cuts: list[int]) -> None:
    wire = sse(chat({"content": "a"}), chat({"content": "b"})) + b"data: {]\n\n" + sse(chat({"content": "c"})) * 2
    exchange = Exchange(0, 0, 0, 0, 0, b"")
    exchange.begin_attempt(fresh("openai"))
    framing = framing_of("sse")
    places = [0, *sorted(cut for cut in set(cuts) if cut < len(wire)), len(wire)]
    for start, end in itertools.pairwise(places):
        if exchange.take(framing.feed(wire[start:end]), 1, True, not framing.pending) & FAILED:
            break
    assert exchange.events == 3
