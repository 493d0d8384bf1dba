"""OpenAI responses: events distinguished by their `type`, whether or not the server also names them. No [DONE].

POST {base}/responses, Bearer. Terminal events are response.completed, response.incomplete and response.failed, which
carry the complete response with its usage; `error` is an event, too.
https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ..plan.plan import Target
from ..records.record import Outcome
from . import END, TOKEN, TOKEN_VISIBLE, VISIBLE, HttpRequest, Prompt, Reply
from .content import Image, bearer, headers_of, parts_of
from .loose import DECODE_ERRORS, count, loosely
from .openai import PUBLIC, failed_by, limited, note_timings

DELTAS: Final = {
    "response.output_text.delta": TOKEN_VISIBLE,
    "response.refusal.delta": TOKEN_VISIBLE,
    "response.function_call_arguments.delta": TOKEN_VISIBLE,
    "response.custom_tool_call_input.delta": TOKEN_VISIBLE,
    "response.mcp_call_arguments.delta": TOKEN_VISIBLE,
    "response.code_interpreter_call_code.delta": TOKEN_VISIBLE,
    "response.shell_call_command.delta": TOKEN_VISIBLE,
    "response.apply_patch_call_operation_diff.delta": TOKEN_VISIBLE,
    "response.audio.delta": TOKEN_VISIBLE,
    "response.audio.transcript.delta": TOKEN_VISIBLE,
    "response.reasoning_text.delta": TOKEN,
    "response.reasoning_summary_text.delta": TOKEN,
}
CALLS: Final = frozenset({"function_call", "custom_tool_call", "mcp_call"})
BILLED_CALLS: Final = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"}
)  # each has a fee
TEXT: Final = "response.output_text.delta"
REFUSAL: Final = "response.refusal.delta"
ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


class InputDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, gc=False):
    type: str | None = None
    name: str | None = None
    content: list[Part] | None = None
    summary: list[Part] | None = None


class Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class Response(msgspec.Struct, gc=False):
    id: str | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: Incomplete | None = None
    output: list[Item] | None = None
    usage: Usage | None = None


class ResponseEvent(msgspec.Struct, gc=False):
    type: str | None = None
    delta: str | None = None
    item: Item | None = None
    response: Response | None = None
    error: Any = None
    message: str | None = None


_decode = msgspec.json.Decoder(ResponseEvent).decode
_decode_whole = msgspec.json.Decoder(Response).decode


class ResponseReply(Reply):
    """One response, streamed or complete."""

    __slots__ = ("_refused",)

    def __init__(self, keep_text: bool = False) -> None:
        super().__init__(keep_text)
        self._refused = False

    def event(self, data: bytes, name: bytes = b"") -> int:
        try:
            event = _decode(data)
        except DECODE_ERRORS as error:
            loose = loosely(ResponseEvent, data)
            if loose is None:
                return self.not_json(data, name, error)
            event = loose
        kind = event.type or name.decode("latin-1")
        bits = DELTAS.get(kind)
        if bits is not None:
            return self._delta(kind, event.delta, bits) if event.delta else 0
        if kind in ENDS:
            note_timings(self, data)
            return self._end(event.response or Response(), kind.removeprefix("response.")) | END
        if kind == "error" or (event.error and not kind):
            return failed_by(self, event.error) if event.error else self.failed(event.message or "")
        if event.response is not None and self.request_id is None:
            self.request_id = event.response.id
        # A tool call's first token is its name, which comes with the item.
        item = event.item
        called = kind == "response.output_item.added" and item is not None and item.type in CALLS and item.name
        return TOKEN_VISIBLE if called else 0

    def body(self, data: bytes) -> int:
        try:
            response = _decode_whole(data)
        except DECODE_ERRORS as error:
            loose = loosely(Response, data)
            if loose is None:
                return self.malformed(error) | END
            response = loose
        if response.output is None and response.status is None and not response.error:
            return self.malformed("the reply has no output") | END
        bits = 0
        for kind, text in _said(response):
            bits |= self._delta(kind, text, DELTAS[kind])
        return bits | self._end(response, response.status or "completed") | END

    def _delta(self, kind: str, text: str, bits: int) -> int:
        if kind == REFUSAL:
            self._refused = True
        elif kind == TEXT:
            self.said(text)
        elif self.keep_text and not bits & VISIBLE:
            self.reasoning_text.append(text)
        return bits

    def _end(self, response: Response, status: str) -> int:
        if self.request_id is None:
            self.request_id = response.id
        if response.usage is not None:
            self._usage(response.usage)
        self.billed_beyond_tokens(any(item.type in BILLED_CALLS for item in response.output or ()))
        self.finish = response.status or status
        if response.error or status in ("failed", "cancelled"):
            return failed_by(self, response.error or f"response {status}")
        if response.incomplete_details is not None and response.incomplete_details.reason:
            self.finish = response.incomplete_details.reason
        if self._refused or self.finish == "content_filter":
            self.outcome = Outcome.CONTENT_FILTERED
        self.ended = True
        return 0

    def _usage(self, usage: Usage) -> None:
        if usage.input_tokens == 0 and not usage.output_tokens:
            return  # a usage of 0/0 is none
        self.input_tokens = count(usage.input_tokens)
        self.output_tokens = count(usage.output_tokens)
        if usage.input_tokens_details is not None:
            self.cached_tokens = count(usage.input_tokens_details.cached_tokens)
            self.cache_write_tokens = count(usage.input_tokens_details.cache_write_tokens)
        if usage.output_tokens_details is not None:
            self.reasoning_tokens = count(usage.output_tokens_details.reasoning_tokens)


def _said(response: Response) -> Iterator[tuple[str, str]]:
    """What a complete response says, as (kind of delta, text)."""
    for item in response.output or ():
        if item.type in CALLS and item.name:
            yield "response.function_call_arguments.delta", item.name
        thought = "response.reasoning_text.delta" if item.type == "reasoning" else TEXT
        for part in (*(item.summary or ()), *(item.content or ())):
            if part.refusal:
                yield REFUSAL, part.refusal
            elif part.text:
                yield thought, part.text


class OpenAIResponses:
    """The `openai-responses` dialect."""

    name = "openai-responses"
    default_base_url: str | None = PUBLIC
    key_variable: str | None = "OPENAI_API_KEY"
    asks = "POST {base}/responses"
    measures = "text, reasoning (summaries), tool calls, usage with cached and reasoning tokens"
    limits = "hidden reasoning sends no events: TTFT is then the first visible token"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        body: dict[str, Any] = {"model": target.model, "input": _input(prompt), "stream": target.stream}
        system = prompt.system or target.system
        if system:
            body["instructions"] = system
        body |= limited(target, prompt, "max_output_tokens")
        return HttpRequest(
            "POST",
            f"{target.base_url.rstrip('/')}/responses",
            headers_of(target, *bearer(target)),
            msgspec.json.encode(body | target.parameters),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return ResponseReply(keep_text)


def _input(prompt: Prompt) -> list[dict[str, Any]]:
    return [
        message | {"content": message["content"] if isinstance(message.get("content"), str) else _parts(message)}
        for message in prompt.messages
    ]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    text = "output_text" if message.get("role") == "assistant" else "input_text"
    parts: list[dict[str, Any]] = []
    for part in parts_of(message.get("content")):
        if isinstance(part, str):
            parts.append({"type": text, "text": part})
        else:
            parts.append({"type": "input_image", "image_url": part.url} if isinstance(part, Image) else part)
    return parts
