"""Anthropic messages: named events, blocks of thinking, text and tool calls, cumulative output usage.

POST {base}/v1/messages with x-api-key and anthropic-version. message_start has the input tokens (cached ones apart),
message_delta the stop reason and the output tokens so far, message_stop ends; `ping` and `error` may come any time.
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..plan.plan import Target
from ..records.record import Outcome
from . import END, TOKEN, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import Image, headers_of, keyed, parts_of
from .loose import DECODE_ERRORS, count, loosely
from .outcomes import message_in

VERSION: Final = "2023-06-01"
MAX_TOKENS: Final = 1024  # the API refuses a request without a limit
CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})


class OutputDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class CacheCreation(msgspec.Struct, gc=False):
    ephemeral_1h_input_tokens: int | None = None


class ServerToolUse(msgspec.Struct, gc=False):
    web_search_requests: int | None = None


class Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: ServerToolUse | None = None
    iterations: list[Any] | None = None


class Block(msgspec.Struct, gc=False):
    """A block as it starts or as it is complete, or what a delta adds to one."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    data: str | None = None  # redacted thinking
    stop_reason: str | None = None  # of message_delta


class Message(msgspec.Struct, gc=False):
    type: str | None = None
    id: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    usage: Usage | None = None
    error: Any = None


class MessageEvent(msgspec.Struct, gc=False):
    type: str | None = None
    delta: Block | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(MessageEvent).decode
_decode_whole = msgspec.json.Decoder(Message).decode


class MessageReply(Reply):
    """One message, streamed or complete."""

    __slots__ = ("_cached", "_fresh", "_written")

    def __init__(self, keep_text: bool = False) -> None:
        super().__init__(keep_text)
        self._fresh: int | None = None
        self._cached: int | None = None
        self._written: int | None = None

    def event(self, data: bytes, name: bytes = b"") -> int:
        try:
            event = _decode(data)
        except DECODE_ERRORS as error:
            loose = loosely(MessageEvent, data)
            if loose is None:
                return self.not_json(data, name, error)
            event = loose
        kind = event.type or name.decode("latin-1")
        if kind == "content_block_delta":
            return self._said(event.delta) if event.delta is not None else 0
        if kind == "content_block_start":
            return self._said(event.content_block) if event.content_block is not None else 0
        if kind == "message_start" and event.message is not None:
            self.request_id = event.message.id
            self._usage(event.message.usage, output=False)  # its output tokens are a guess
        elif kind == "message_delta":
            self._usage(event.usage)
            if event.delta is not None and event.delta.stop_reason is not None:
                self._stop(event.delta.stop_reason)
        elif kind == "message_stop":
            self.ended = True
            return END
        elif kind == "error" or event.error:
            return self._error(event.error)
        return 0

    def body(self, data: bytes) -> int:
        try:
            message = _decode_whole(data)
        except DECODE_ERRORS as error:
            loose = loosely(Message, data)
            if loose is None:
                return self.malformed(error) | END
            message = loose
        if message.type == "error" or message.error:
            return self._error(message.error) | END
        if message.content is None:
            return self.malformed("the reply has no content") | END
        bits = 0
        for block in message.content:
            bits |= self._said(block)
        self.request_id = message.id
        self._usage(message.usage)
        if message.stop_reason is not None:
            self._stop(message.stop_reason)
        self.ended = True
        return bits | END

    def _said(self, block: Block) -> int:
        """A tool call's first token is its name, redacted thinking is thinking; signatures are nothing."""
        if block.text:
            self.said(block.text)
            return TOKEN_VISIBLE
        if block.thinking:
            if self.keep_text:
                self.reasoning_text.append(block.thinking)
            return TOKEN
        if block.partial_json or (block.name and block.type in CALLS):
            return TOKEN_VISIBLE
        return TOKEN if block.data and block.type == "redacted_thinking" else 0

    def _usage(self, usage: Usage | None, *, output: bool = True) -> None:
        """Takes what a usage object says: later ones are totals and replace, what they leave out stays."""
        if usage is None:
            return
        if usage.input_tokens is not None:
            self._fresh = usage.input_tokens
        if usage.cache_read_input_tokens is not None:
            self._cached = usage.cache_read_input_tokens
            self.cached_tokens = count(self._cached)
        if usage.cache_creation_input_tokens is not None:
            self._written = usage.cache_creation_input_tokens
            self.cache_write_tokens = count(self._written)
        if self._fresh is not None:
            self.input_tokens = count(self._fresh + (self._cached or 0) + (self._written or 0))
        if output and usage.output_tokens is not None:
            self.output_tokens = count(usage.output_tokens)
        self.drop_empty_usage()
        if usage.output_tokens_details is not None:
            self.reasoning_tokens = count(usage.output_tokens_details.thinking_tokens)
        # Writes to the 1-hour cache cost more than those to the 5-minute one, searches have a fee, and the tokens of
        # a compaction stand in the iterations alone.
        if usage.cache_creation is not None:
            self.billed_beyond_tokens(usage.cache_creation.ephemeral_1h_input_tokens)
        if usage.server_tool_use is not None:
            self.billed_beyond_tokens(usage.server_tool_use.web_search_requests)
        self.billed_beyond_tokens(usage.iterations is not None and len(usage.iterations) > 1)

    def _stop(self, reason: str) -> None:
        self.finish = reason
        if reason == "refusal":
            self.outcome = Outcome.CONTENT_FILTERED

    def _error(self, error: Any) -> int:
        kind = error.get("type") if isinstance(error, dict) else None
        message = message_in({"error": error}) or ""
        return self.failed(f"{kind}: {message}" if kind else message)


class Anthropic:
    """The `anthropic` dialect."""

    name = "anthropic"
    default_base_url: str | None = "https://api.anthropic.com"
    key_variable: str | None = "ANTHROPIC_API_KEY"
    asks = "POST {base}/v1/messages"
    measures = "text, thinking, tool calls, usage with cache reads and writes"
    limits = f"max_tokens is {MAX_TOKENS} unless given; thinking tokens are counted separately only where usage does"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        base = target.base_url.rstrip("/").removesuffix("/v1")
        limit = prompt.max_tokens if prompt.max_tokens is not None else MAX_TOKENS
        body: dict[str, Any] = {"model": target.model, "max_tokens": limit, "stream": target.stream}
        system = prompt.system or target.system
        if system:
            body["system"] = system
        body["messages"] = [message | {"content": _content(message.get("content"))} for message in prompt.messages]
        return HttpRequest(
            "POST",
            f"{base}/v1/messages",
            headers_of(target, *keyed(target, "x-api-key"), ("anthropic-version", VERSION)),
            msgspec.json.encode(body | target.parameters),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return MessageReply(keep_text)


def _content(content: Any) -> Any:
    return content if isinstance(content, str) else [_block(part) for part in parts_of(content)]


def _block(part: str | Image | dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Image):
        return part
    if part.base64:
        source = {"type": "base64", "media_type": part.media_type, "data": part.base64}
    else:
        source = {"type": "url", "url": part.url}
    return {"type": "image", "source": source}
