"""What the dialects' tests share: targets, prompts, whole streams of every API as bytes, and how a reply is read."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from llm_latency_lens.engine.dialects import TOKEN, VISIBLE, Prompt, Reply
from llm_latency_lens.engine.dialects.table import DIALECTS, framing_for
from llm_latency_lens.engine.plan.plan import Generic, Secret, Target
from llm_latency_lens.engine.records.record import UNKNOWN, Outcome
from llm_latency_lens.engine.wire.framing import framing_of

KEY = "sk-not-a-real-key"
ASKED = Prompt(({"role": "user", "content": "how fast"},))
PICTURE = "data:image/png;base64,iVBORw0KGgo="
SHOWN = Prompt(
    (
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": PICTURE}}],
        },
    )
)
TALK = Prompt(
    (
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ),
    system="be brief",
    max_tokens=7,
)
NDJSON = Generic(
    path="/api/chat",
    body={"model": "{{model}}", "messages": "{{messages}}", "stream": "{{stream}}"},
    framing="ndjson",
    text="/message/content",
    reasoning="/message/thinking",
    input_tokens="/prompt_eval_count",
    output_tokens="/eval_count",
    finish="/done_reason",
    error="/error",
    end="/done",
)


def target(provider: str, base_url: str = "http://127.0.0.1:1", **changes: Any) -> Target:
    given = {"name": "t", "model": "m", "api_key": Secret(KEY)} | changes
    if provider == "http":
        given.setdefault("http", NDJSON)
    return Target(provider=provider, base_url=base_url, **given)


def fresh(provider: str, **changes: Any) -> Reply:
    return DIALECTS[provider].reply(target(provider, **changes), keep_text=True)


def bits_of(provider: str, event: Any, name: bytes = b"") -> int:
    """The bits of one event on a fresh reply; what is no bytes goes as JSON."""
    return fresh(provider).event(event if isinstance(event, bytes) else json.dumps(event).encode(), name)


def asked(provider: str, prompt: Prompt = ASKED, base_url: str = "http://127.0.0.1:1", **changes: Any) -> Any:
    """(URL, headers, decoded body) of a rendered request."""
    request = DIALECTS[provider].request(target(provider, base_url, **changes), prompt)
    return request.url, dict(request.headers), json.loads(request.body) if request.body else None


class Read(NamedTuple):
    """All that a reply said."""

    tokens: int
    visible: int
    text: str
    thought: str
    input: int | None
    cached: int | None
    output: int | None
    reasoning: int | None
    finish: str | None
    outcome: Outcome
    finished: bool
    bits: int


def read(reply: Reply, pieces: list[bytes], content_type: str = "text/event-stream") -> Read:
    """What is read of a body that comes in these pieces."""
    framing = framing_of(framing_for(reply, content_type))
    events = [event for piece in pieces for event in framing.feed(piece)]
    return outcome_of(reply, [reply.event(data, name) for name, data in events + framing.flush()])


def read_whole(reply: Reply, body: bytes) -> Read:
    return outcome_of(reply, [reply.body(body)])


def outcome_of(reply: Reply, bits: list[int]) -> Read:
    every = 0
    for each in bits:
        every |= each
    return Read(
        sum(bool(each & TOKEN) for each in bits),
        sum(bool(each & VISIBLE) for each in bits),
        "".join(reply.text),
        "".join(reply.reasoning_text),
        *(
            None if tokens == UNKNOWN else tokens
            for tokens in (reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens)
        ),
        reply.finish,
        reply.outcome,
        reply.finished(),
        every,
    )


def sse(*events: Any, named: bool = False, newline: str = "\n") -> bytes:
    """Events as a server sends them, a comment first; names are their `type`."""
    text = f": keep-alive{newline}{newline}"
    for event in events:
        name = f"event: {event['type']}{newline}" if named and isinstance(event, dict) else ""
        value = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        text += f"{name}data: {value}{newline}{newline}"
    return text.encode()


def chat(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


def complete(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": finish}]} | more


def block_delta(index: int, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def generated(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    return {"candidates": [candidate | ({"finishReason": finish} if finish else {})], "responseId": "r"} | more


def cohere_delta(**content: Any) -> dict[str, Any]:
    return {"type": "content-delta", "index": 0, "delta": {"message": {"content": content}}}


OPENAI_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
CHAT = (
    chat({"role": "assistant", "content": ""}),
    chat({"reasoning_content": "so "}),
    chat({"reasoning": "then"}),
    chat({"content": "café"}),
    chat({"content": None}),
    chat({"content": " ✓\n"}),
    chat({}, "stop"),
    {"id": "c", "choices": [], "usage": OPENAI_USAGE},
    "[DONE]",
)
FILTER_RESULTS = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
}
RESPONSES = (
    {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": [], "usage": None}},
    {"type": "response.output_item.added", "item": {"type": "reasoning", "id": "rs", "summary": []}},
    {"type": "response.reasoning_text.delta", "delta": "so "},
    {"type": "response.reasoning_summary_text.delta", "delta": "then"},
    {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "delta": "café", "logprobs": []},
    {"type": "response.output_text.delta", "delta": " ✓\n"},
    {"type": "response.output_text.done", "text": "café ✓\n"},
    {"type": "response.completed", "response": {"id": "r", "status": "completed", "usage": RESPONSE_USAGE}},
)
MESSAGES = (
    {
        "type": "message_start",
        "message": {
            "id": "m",
            "content": [],
            "usage": {
                "input_tokens": 3,
                "cache_read_input_tokens": 4,
                "cache_creation_input_tokens": 2,
                "output_tokens": 1,
            },
        },
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    block_delta(0, type="thinking_delta", thinking="so "),
    block_delta(0, type="thinking_delta", thinking="then"),
    block_delta(0, type="signature_delta", signature="c2ln"),
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    block_delta(1, type="text_delta", text="café"),
    block_delta(1, type="text_delta", text=" ✓\n"),
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
GOOGLE_USAGE = {
    "promptTokenCount": 9,
    "cachedContentTokenCount": 4,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 2,
    "totalTokenCount": 14,
}
GENERATED = (
    generated({"text": "so ", "thought": True}, usageMetadata={"promptTokenCount": 9}),
    generated({"text": "then", "thought": True}),
    generated({"text": "café"}, usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 1}),
    generated({"text": " ✓\n"}),
    generated({"text": ""}, finish="STOP", usageMetadata=GOOGLE_USAGE),
)
COHERE = (
    {"type": "message-start", "id": "i", "delta": {"message": {"role": "assistant", "content": [], "tool_calls": []}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "thinking", "thinking": ""}}}},
    cohere_delta(thinking="so "),
    cohere_delta(thinking="then"),
    {"type": "content-end", "index": 0},
    {"type": "content-start", "index": 1, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    cohere_delta(text="café"),
    cohere_delta(text=" ✓\n"),
    {"type": "content-end", "index": 1},
    {
        "type": "message-end",
        "delta": {
            "finish_reason": "COMPLETE",
            "usage": {
                "billed_units": {"input_tokens": 2, "output_tokens": 5},
                "tokens": {"input_tokens": 9.0, "output_tokens": 5.0},
                "cached_tokens": 4.0,
            },
        },
    },
)
OLLAMA = (
    {"message": {"role": "assistant", "content": "", "thinking": "so "}, "done": False},
    {"message": {"role": "assistant", "content": "", "thinking": "then"}, "done": False},
    {"message": {"role": "assistant", "content": "café"}, "done": False},
    {"message": {"role": "assistant", "content": " ✓\n"}, "done": False},
    {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 9,
        "eval_count": 5,
    },
)


def lines(*values: Any, newline: str = "\n") -> bytes:
    return newline.join([*(json.dumps(value, ensure_ascii=False) for value in values), ""]).encode()


class Stream(NamedTuple):
    """A whole reply on the wire, its pieces for cutting, and what must be read of it."""

    provider: str
    wire: bytes
    events: list[bytes]  # the same, one event each
    expected: Read
    content_type: str = "text/event-stream"


def _stream(provider: str, wire: bytes, events: list[bytes], content_type: str = "", **expected: Any) -> Stream:
    common: dict[str, Any] = {
        "tokens": 4,
        "visible": 2,
        "text": "café ✓\n",
        "thought": "so then",
        "input": 9,
        "cached": 4,
        "output": 5,
        "reasoning": 2,
        "finish": "stop",
        "outcome": Outcome.OK,
        "finished": True,
        "bits": 7,
    }
    return Stream(provider, wire, events, Read(**common | expected), content_type or "text/event-stream")


def _sse_stream(provider: str, events: Any, *, named: bool = False, newline: str = "\n", **expected: Any) -> Stream:
    cut = [sse(event, named=named, newline=newline) for event in events]
    return _stream(provider, sse(*events, named=named, newline=newline), cut, **expected)


STREAMS = {
    "chat": _sse_stream("openai", CHAT),
    "chat, CRLF": _sse_stream("openai", CHAT, newline="\r\n"),
    "chat, CR": _sse_stream("openai", CHAT, newline="\r"),
    "azure": _sse_stream("azure-openai", (FILTER_RESULTS, *CHAT)),
    "completions": _sse_stream(
        "openai-completions",
        (complete("café"), complete(""), complete(" ✓\n"), complete("", "stop"), CHAT[-2], CHAT[-1]),
        tokens=2,
        thought="",
    ),
    "responses": _sse_stream("openai-responses", RESPONSES, named=True, finish="completed"),
    "responses without event lines": _sse_stream("openai-responses", RESPONSES, finish="completed"),
    "anthropic": _sse_stream("anthropic", MESSAGES, named=True, finish="end_turn", reasoning=None),
    "anthropic, CRLF": _sse_stream(
        "anthropic", MESSAGES, named=True, newline="\r\n", finish="end_turn", reasoning=None
    ),
    "google": _sse_stream("google", GENERATED, newline="\r\n", finish="STOP", bits=3),
    "google, array": _stream(
        "google",
        b"[" + b",\r\n".join(json.dumps(each, ensure_ascii=False).encode() for each in GENERATED) + b"]",
        [json.dumps(each).encode() for each in GENERATED],
        "application/json; charset=UTF-8",
        finish="STOP",
        bits=3,
    ),
    "cohere": _sse_stream("cohere", COHERE, named=True, finish="COMPLETE", reasoning=None),
    "ollama": _stream(
        "http", lines(*OLLAMA), [lines(each) for each in OLLAMA], "application/x-ndjson", cached=None, reasoning=None
    ),
}
