"""Cohere chat, version 2: events distinguished by their `type`, content items of text and thinking, usage in message-end.

POST {base}/v2/chat, Bearer. message-end ends, also where its finish_reason is an error.
https://docs.cohere.com/v2/reference/chat-stream
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..plan.plan import Target
from ..records.record import BILLED_APART, Outcome
from . import END, TOKEN, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import bearer, headers_of
from .loose import DECODE_ERRORS, count, loosely
from .openai import limited, messages_of

SAYING: Final = frozenset(
    {"content-delta", "content-start", "tool-plan-delta", "tool-call-start", "tool-call-delta"}
)  # fmt: skip
FAILED_FINISHES: Final = frozenset({"ERROR", "ERROR_LIMIT", "TIMEOUT", "USER_CANCEL"})


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None


class Content(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None


class Message(msgspec.Struct, gc=False):
    """Deltas have one content item and one tool call, message-start and complete replies have lists of them."""

    content: Content | list[Content] | str | None = None
    tool_plan: str | None = None
    tool_calls: ToolCall | list[ToolCall] | None = None


class Counts(msgspec.Struct, gc=False):
    input_tokens: float | None = None
    output_tokens: float | None = None
    search_units: float | None = None


class Usage(msgspec.Struct, gc=False):
    tokens: Counts | None = None
    billed_units: Counts | None = None
    cached_tokens: float | None = None


class Delta(msgspec.Struct, gc=False):
    message: Message | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None


class ChatEvent(msgspec.Struct, gc=False):
    type: str | None = None
    delta: Delta | None = None
    id: str | None = None
    message: str | None = None  # of an error object


class ChatBody(msgspec.Struct, gc=False):
    id: str | None = None
    message: Message | str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


_decode = msgspec.json.Decoder(ChatEvent).decode
_decode_whole = msgspec.json.Decoder(ChatBody).decode


class CohereReply(Reply):
    """One chat reply, streamed or complete."""

    __slots__ = ()

    def event(self, data: bytes, name: bytes = b"") -> int:
        try:
            event = _decode(data)
        except DECODE_ERRORS as error:
            loose = loosely(ChatEvent, data)
            if loose is None:
                return self.not_json(data, name, error)
            event = loose
        kind = event.type or name.decode("latin-1")
        delta = event.delta
        if kind in SAYING:
            return self._said(delta.message) if delta is not None and delta.message is not None else 0
        if kind == "message-start":
            self.request_id = event.id
        elif kind == "message-end":
            return self._end(delta or Delta()) | END
        elif kind in ("error", "") and event.message:
            return self.failed(event.message)
        return 0

    def body(self, data: bytes) -> int:
        try:
            reply = _decode_whole(data)
        except DECODE_ERRORS as error:
            loose = loosely(ChatBody, data)
            if loose is None:
                return self.malformed(error) | END
            reply = loose
        if isinstance(reply.message, str):
            return self.failed(reply.message) | END
        if reply.message is None:
            return self.malformed("the reply has no message") | END
        self.request_id = reply.id
        bits = self._said(reply.message)
        return bits | self._end(Delta(finish_reason=reply.finish_reason, usage=reply.usage)) | END

    def _said(self, message: Message) -> int:
        bits = 0
        for content in _listed(message.content):
            text, thought = (content, None) if isinstance(content, str) else (content.text, content.thinking)
            if text:
                bits |= TOKEN_VISIBLE
                self.said(text)
            if thought:
                bits |= TOKEN
                if self.keep_text:
                    self.reasoning_text.append(thought)
        if message.tool_plan:  # what the model thinks before it calls a tool
            bits |= TOKEN
            if self.keep_text:
                self.reasoning_text.append(message.tool_plan)
        for call in _listed(message.tool_calls):
            if call.function is not None and (call.function.name or call.function.arguments):
                bits |= TOKEN_VISIBLE
        return bits

    def _end(self, delta: Delta) -> int:
        self.finish = delta.finish_reason
        usage = delta.usage
        if usage is not None:
            self._usage(usage)
        if delta.error or self.finish in FAILED_FINISHES:
            return self.failed(delta.error or f"finish_reason {self.finish}")
        if self.finish == "ERROR_TOXIC":
            self.outcome = Outcome.CONTENT_FILTERED
        self.ended = True
        return 0

    def _usage(self, usage: Usage) -> None:
        """`tokens` were processed, `billed_units` are paid for: the prompt's template, for one, is not."""
        counts, billed = usage.tokens or usage.billed_units or Counts(), usage.billed_units
        if counts.input_tokens == 0 and not counts.output_tokens:
            return  # a usage of 0/0 is none
        self.input_tokens = count(counts.input_tokens)
        self.output_tokens = count(counts.output_tokens)
        self.cached_tokens = count(usage.cached_tokens)
        if billed is not None and billed.input_tokens is not None and billed.output_tokens is not None:
            self.billed_input_tokens = count(billed.input_tokens)
            self.billed_output_tokens = count(billed.output_tokens)
            self.flags |= BILLED_APART
            self.billed_beyond_tokens(billed.search_units)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class Cohere:
    """The `cohere` dialect."""

    name = "cohere"
    default_base_url: str | None = "https://api.cohere.com"
    key_variable: str | None = "CO_API_KEY"
    asks = "POST {base}/v2/chat"
    measures = "text, thinking, tool plans and calls, usage with cached tokens"
    limits = "usage does not count reasoning tokens separately; tokens are those processed, the cost is of those billed"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        base = target.base_url.rstrip("/").removesuffix("/v2")
        body: dict[str, Any] = {"model": target.model, "messages": messages_of(target, prompt), "stream": target.stream}
        return HttpRequest(
            "POST",
            f"{base}/v2/chat",
            headers_of(target, *bearer(target)),
            msgspec.json.encode(body | limited(target, prompt, "max_tokens") | target.parameters),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return CohereReply(keep_text)
