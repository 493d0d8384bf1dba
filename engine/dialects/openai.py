"""OpenAI chat completions, and every server that speaks them (vLLM, SGLang, TGI, llama.cpp, Ollama /v1, Groq, ...).

POST {base}/chat/completions, Bearer. Unnamed SSE events, `data: [DONE]` ends. The first chunk is role-only and no
token; reasoning comes as delta.reasoning_content or delta.reasoning; usage in a chunk of its own, in the finish chunk,
or never. https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from ..plan.plan import Target
from ..records.record import Outcome
from . import END, ERROR_CHARACTERS, FAILED, TOKEN, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import bearer, headers_of
from .loose import DECODE_ERRORS, count, loosely, micros
from .outcomes import message_in

DONE: Final = b"[DONE]"
PUBLIC: Final = "https://api.openai.com/v1"
PUBLIC_HOST: Final = "api.openai.com"
USAGE_WANTED: Final = {"include_usage": True}
LIMITS: Final = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
BROKEN_FINISHES: Final = frozenset({"error", "abort", "insufficient_system_resource"})  # Mistral, vLLM, DeepSeek


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptTokens(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class OutputTokens(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptTokens | None = None
    completion_tokens_details: OutputTokens | None = None
    cached_tokens: int | None = None  # Moonshot, and others that keep no details
    prompt_cache_hit_tokens: int | None = None  # DeepSeek
    num_search_queries: int | None = None  # Perplexity: searches have a price of their own
    citation_tokens: int | None = None
    num_sources_used: int | None = None  # xAI: so has each source of a live search


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    id: str | None = None


class Timings(msgspec.Struct):
    prompt_ms: float | None = None


class Timed(msgspec.Struct):
    """The last chunk of llama.cpp: how long the server worked on the prompt, until the first token."""

    timings: Timings | None = None


class Audio(msgspec.Struct):
    data: str | None = None
    transcript: str | None = None


class RareDelta(msgspec.Struct):
    audio: Audio | None = None
    images: list[Any] | None = None


class RareChoice(msgspec.Struct):
    delta: RareDelta | None = None
    message: RareDelta | None = None
    usage: Usage | None = None  # Moonshot


class GroqPart(msgspec.Struct):
    usage: Usage | None = None


class RareChunk(msgspec.Struct):
    """The members that few servers send. In `Chunk` they cost 5 % of every event."""

    choices: list[RareChoice] | None = None
    x_groq: GroqPart | None = None


RARE: Final = re.compile(rb'"(?:usage|audio|images)"\s*:\s*[{\[]').search
_decode = msgspec.json.Decoder(Chunk).decode
_decode_timed = msgspec.json.Decoder(Timed).decode


class ChatReply(Reply):
    """One chat completion, streamed or complete."""

    __slots__ = ("_refused",)

    def __init__(self, keep_text: bool = False) -> None:
        super().__init__(keep_text)
        self._refused = False

    def event(self, data: bytes, name: bytes = b"") -> int:
        if data == DONE:
            self.ended = True
            return END
        try:
            chunk = _decode(data)
        except DECODE_ERRORS as error:
            loose = loose_chunk(data)
            if loose is None:
                return not_an_object(self, data, error, name)
            chunk = loose
        choices = chunk.choices
        if choices and chunk.usage is None and chunk.error is None and not self.heeds_text:
            # Nearly every event: one choice, some content, nothing else. 2x faster (benches/bench_dialect.py).
            choice = choices[0]
            if choice.finish_reason is None and choice.delta is not None and choice.delta.content and len(choices) == 1:
                return TOKEN_VISIBLE
        bits = self._choices(choices) if choices else 0
        if self.request_id is None:
            self.request_id = chunk.id
        if self.finish is not None:
            note_timings(self, data)
        if chunk.usage is not None:
            note_usage(self, chunk.usage)
        elif (not bits or self.finish is not None) and RARE(data):
            bits |= self._rare(loosely(RareChunk, data) or RareChunk())
        if chunk.error:
            return bits | failed_by(self, chunk.error)
        if self.finish in BROKEN_FINISHES and not self.ended:
            return bits | self.failed(f"finish_reason {self.finish}")
        return bits if choices or chunk.usage is not None else bits | bare_error(self, data, name)

    def body(self, data: bytes) -> int:
        return complete_body(self, data)

    def _choices(self, choices: list[Choice]) -> int:
        bits = 0
        for choice in choices:
            delta = choice.delta or choice.message
            if delta is not None:
                bits |= self._delta(delta)
            if choice.finish_reason is not None:
                self.finish = choice.finish_reason
                if self.finish == "content_filter" or self._refused:
                    self.outcome = Outcome.CONTENT_FILTERED
        return bits

    def _rare(self, chunk: RareChunk) -> int:
        """What few servers send: usage in other places, audio and images."""
        bits = 0
        if chunk.x_groq is not None and chunk.x_groq.usage is not None:
            note_usage(self, chunk.x_groq.usage)
        for choice in chunk.choices or ():
            if choice.usage is not None:
                note_usage(self, choice.usage)
            delta = choice.delta or choice.message or RareDelta()
            audio = delta.audio or Audio()
            if delta.images or audio.data or audio.transcript:
                bits = TOKEN_VISIBLE
        return bits

    def _delta(self, delta: Delta) -> int:
        bits = 0
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            bits = TOKEN
            if self.keep_text:
                self.reasoning_text.append(thought)
        if delta.content:
            self.said(delta.content)
            return TOKEN_VISIBLE
        if delta.refusal:
            self._refused = True
            return TOKEN_VISIBLE
        if delta.tool_calls and any(_says(call.function) for call in delta.tool_calls):
            return TOKEN_VISIBLE
        return TOKEN_VISIBLE if _says(delta.function_call) else bits


def loose_chunk(data: bytes) -> Chunk | None:
    """A chunk with members of unusual types, among them content as a list of text and thinking parts (Mistral)."""
    chunk = loosely(Chunk, data)
    thoughts = loosely(_Thoughts, data) if chunk is not None and b'"thinking"' in data else None
    if chunk is None or thoughts is None:
        return chunk
    for choice, thinking in zip(chunk.choices or (), thoughts.choices, strict=False):
        delta, parts = choice.delta or choice.message, thinking.delta or thinking.message
        if delta is not None and parts is not None:
            delta.reasoning_content = "".join(part.thinking for part in parts.content) or delta.reasoning_content
    return chunk


def note_timings(reply: Reply, data: bytes) -> None:
    """Takes llama.cpp's own account of a reply, in the chunk of the finish reason or of the usage behind it."""
    if b'"timings"' in data:
        try:
            timed = _decode_timed(data)
        except DECODE_ERRORS:  # it says nothing that is understood
            return
        if timed.timings is not None:
            reply.provider_us = micros(timed.timings.prompt_ms)


def note_usage(reply: Reply, usage: Usage) -> None:
    """Takes what a usage object says; what it leaves out stays as it was. A usage of 0/0 is none: nothing has no prompt."""
    if usage.prompt_tokens == 0 and not usage.completion_tokens:
        return
    if usage.prompt_tokens is not None:
        reply.input_tokens = count(usage.prompt_tokens)
    if usage.completion_tokens is not None:
        reply.output_tokens = count(usage.completion_tokens + _reasoning_apart(usage))
    cached = usage.cached_tokens if usage.cached_tokens is not None else usage.prompt_cache_hit_tokens
    if cached is not None:
        reply.cached_tokens = count(cached)
    reply.billed_beyond_tokens(usage.num_search_queries or usage.citation_tokens or usage.num_sources_used)
    details = usage.prompt_tokens_details
    if details is not None:
        reply.billed_beyond_tokens(details.audio_tokens or details.image_tokens)
        if details.cached_tokens is not None:
            reply.cached_tokens = count(details.cached_tokens)
        if details.cache_write_tokens is not None:
            reply.cache_write_tokens = count(details.cache_write_tokens)
    split = usage.completion_tokens_details
    if split is not None:
        reply.billed_beyond_tokens(split.audio_tokens or split.image_tokens)
        if split.reasoning_tokens is not None:
            reply.reasoning_tokens = count(split.reasoning_tokens)


def _reasoning_apart(usage: Usage) -> int:
    """The reasoning tokens that completion_tokens leaves out, as at xAI, where the total says so; else 0."""
    split = usage.completion_tokens_details
    reasoning = split.reasoning_tokens if split is not None else None
    if not reasoning or usage.prompt_tokens is None or usage.completion_tokens is None:
        return 0
    return reasoning if usage.total_tokens == usage.prompt_tokens + usage.completion_tokens + reasoning else 0


def failed_by(reply: Reply, error: Any) -> int:
    """An error object inside a 200 reply; Azure's content filter says so in its code."""
    filtered = isinstance(error, dict) and error.get("code") == "content_filter"
    outcome = Outcome.CONTENT_FILTERED if filtered else Outcome.STREAM_ERROR
    return reply.failed(message_in({"error": error}) or str(error), outcome)


def not_an_object(reply: Reply, data: bytes, problem: object, name: bytes = b"") -> int:
    """An event that is no JSON object: nothing at all, [DONE] with blanks around it, an error's text, or malformed."""
    text = data.strip()
    if text == DONE:
        reply.ended = True
        return END
    if name == b"error" and text:
        return reply.failed(text[:ERROR_CHARACTERS].decode("utf-8", "replace"))
    return reply.malformed(problem) if text else 0


def bare_error(reply: Reply, data: bytes, name: bytes) -> int:
    """FAILED for an object that is an error in itself: an event named `error`, or {"object": "error", "message"}."""
    if name != b"error" and b'"error"' not in data:
        return 0
    plain = loosely(_Bare, data) or _Bare()
    if name != b"error" and "error" not in (plain.object, plain.type):
        return 0
    return reply.failed(plain.message or plain.detail or "")


def complete_body(reply: Reply, data: bytes) -> int:
    """A non-streaming body: one event, which must be a reply or an error."""
    if not data.strip():
        return reply.malformed("the reply is empty") | END
    bits = reply.event(data)
    if not bits & FAILED and b'"choices"' not in data:
        bits |= reply.malformed("the reply has no choices")
    reply.ended = not bits & FAILED
    return bits | END


class _ThinkingPart(msgspec.Struct):
    thinking: str = ""


class _Parts(msgspec.Struct):
    content: list[_ThinkingPart] = []


class _ThinkingChoice(msgspec.Struct):
    delta: _Parts | None = None
    message: _Parts | None = None


class _Thoughts(msgspec.Struct):
    choices: list[_ThinkingChoice] = []


class _Bare(msgspec.Struct):
    object: str | None = None
    type: str | None = None
    message: str | None = None
    detail: str | None = None


def _says(function: Function | None) -> bool:
    return function is not None and bool(function.name or function.arguments)


class OpenAIChat:
    """The `openai` dialect."""

    name = "openai"
    default_base_url: str | None = PUBLIC
    key_variable: str | None = "OPENAI_API_KEY"
    asks = "POST {base}/chat/completions"
    measures = "text, reasoning, tool calls, usage with cached and reasoning tokens"
    limits = "usage only from servers that know stream_options; max_tokens is max_completion_tokens at OpenAI itself"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        limit = "max_completion_tokens" if is_public(target) else "max_tokens"
        return HttpRequest(
            "POST",
            f"{target.base_url.rstrip('/')}/chat/completions",
            headers_of(target, *bearer(target)),
            chat_body(target, prompt, limit),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return ChatReply(keep_text)


def chat_body(target: Target, prompt: Prompt, limit: str) -> bytes:
    """A chat completion's body; `limit` is what this server calls the most tokens."""
    body: dict[str, Any] = {"model": target.model, "messages": messages_of(target, prompt)}
    return msgspec.json.encode(body | streaming(target) | limited(target, prompt, limit) | parameters_of(target))


def is_public(target: Target) -> bool:
    """Is it OpenAI itself, at any of its hosts (api.openai.com, eu.api.openai.com, ...)?"""
    host = urlsplit(target.base_url).hostname or ""
    return host == PUBLIC_HOST or host.endswith(f".{PUBLIC_HOST}")


def streaming(target: Target) -> dict[str, Any]:
    """The stream flag, and the usage chunk asked for."""
    return {"stream": True, "stream_options": USAGE_WANTED} if target.stream else {"stream": False}


def parameters_of(target: Target) -> dict[str, Any]:
    """The plan's parameters; stream options of theirs stand beside the wish for usage."""
    given = target.parameters.get("stream_options")
    if not target.stream or not isinstance(given, dict):
        return target.parameters
    return target.parameters | {"stream_options": USAGE_WANTED | given}


def limited(target: Target, prompt: Prompt, limit: str) -> dict[str, Any]:
    """The prompt's token limit, unless the plan's parameters have one of any name."""
    if prompt.max_tokens is None or not LIMITS.isdisjoint(target.parameters):
        return {}
    return {limit: prompt.max_tokens}


def messages_of(target: Target, prompt: Prompt) -> list[dict[str, Any]]:
    """The messages with the system prompt in front."""
    system = prompt.system or target.system
    return [*([{"role": "system", "content": system}] if system else []), *prompt.messages]
