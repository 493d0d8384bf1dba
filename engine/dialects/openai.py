"""OpenAI chat completions, and every server that speaks them (vLLM, SGLang, TGI, llama.cpp, Ollama /v1, Groq, ...).

POST {base}/chat/completions, Bearer. Unnamed SSE events, `data: [DONE]` ends. The first chunk is role-only and no
token; reasoning comes as delta.reasoning_content or delta.reasoning; usage in a chunk of its own, in the finish chunk,
or never. https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from llm_latency_lens.engine.dialects import END, FAILED, TOKEN, VISIBLE, HttpRequest, Prompt, Reply
from llm_latency_lens.engine.dialects.outcomes import message_in
from llm_latency_lens.engine.plan import Target
from llm_latency_lens.engine.record import UNKNOWN, Outcome

DONE: Final = b"[DONE]"
TOKEN_VISIBLE: Final = TOKEN | VISIBLE
PUBLIC: Final = "https://api.openai.com/v1"


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


class CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class ReasoningTokens(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    id: str | None = None


_decode = msgspec.json.Decoder(Chunk).decode


class ChatReply(Reply):
    """One chat completion, streamed or whole."""

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
        except (msgspec.DecodeError, RecursionError) as error:
            return self._malformed(error)
        choices = chunk.choices
        if choices and chunk.usage is None and chunk.error is None and not self.keep_text:
            # Nearly every event: one choice, some content, nothing else. 2x faster (benches/bench_dialect.py).
            choice = choices[0]
            if choice.finish_reason is None and choice.delta is not None and choice.delta.content and len(choices) == 1:
                return TOKEN_VISIBLE
        bits = self._choices(chunk) if choices else 0
        if chunk.usage is not None:
            self._usage(chunk.usage)
        if chunk.error is not None:
            return bits | self._failed(chunk.error)
        return bits

    def body(self, data: bytes) -> int:
        bits = self.event(data)
        if not bits & FAILED:
            self.ended = True
        return bits | END

    def _choices(self, chunk: Chunk) -> int:
        bits = 0
        for choice in chunk.choices or ():
            delta = choice.delta or choice.message
            if delta is not None:
                bits |= self._delta(delta)
            if choice.finish_reason is not None:
                self.finish = choice.finish_reason
                if self.finish == "content_filter" or self._refused:
                    self.outcome = Outcome.CONTENT_FILTERED
        if self.request_id is None:
            self.request_id = chunk.id
        return bits

    def _delta(self, delta: Delta) -> int:
        if delta.content:
            if self.keep_text:
                self.text.append(delta.content)
            return TOKEN | VISIBLE
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            if self.keep_text:
                self.reasoning_text.append(thought)
            return TOKEN
        if delta.refusal:
            self._refused = True
            return TOKEN | VISIBLE
        if delta.tool_calls and any(_says(call.function) for call in delta.tool_calls):
            return TOKEN | VISIBLE
        return TOKEN | VISIBLE if _says(delta.function_call) else 0

    def _usage(self, usage: Usage) -> None:
        if usage.prompt_tokens is not None:
            self.input_tokens = min(usage.prompt_tokens, UNKNOWN - 1)
        if usage.completion_tokens is not None:
            self.output_tokens = min(usage.completion_tokens, UNKNOWN - 1)
        details = usage.prompt_tokens_details
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens
        split = usage.completion_tokens_details
        if split is not None and split.reasoning_tokens is not None:
            self.reasoning_tokens = split.reasoning_tokens

    def _failed(self, error: Any) -> int:
        self.outcome = Outcome.STREAM_ERROR
        self.error = message_in({"error": error}) or str(error)[:200]
        return FAILED

    def _malformed(self, error: Exception) -> int:
        self.outcome = Outcome.STREAM_MALFORMED
        self.error = f"malformed event: {error}"[:200]
        return FAILED


def _says(function: Function | None) -> bool:
    return function is not None and bool(function.name or function.arguments)


class OpenAIChat:
    """The `openai` dialect."""

    name = "openai"
    default_base_url: str | None = PUBLIC
    key_variable: str | None = "OPENAI_API_KEY"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        body: dict[str, Any] = {"model": target.model, "messages": messages_of(target, prompt), "stream": target.stream}
        if target.stream:
            body["stream_options"] = {"include_usage": True}
        limit = "max_completion_tokens" if target.base_url.rstrip("/") == PUBLIC else "max_tokens"
        if prompt.max_tokens is not None and not {"max_tokens", "max_completion_tokens"} & set(target.parameters):
            body[limit] = prompt.max_tokens
        return HttpRequest(
            "POST",
            f"{target.base_url.rstrip('/')}/chat/completions",
            bearer_headers(target),
            msgspec.json.encode(body | target.parameters),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return ChatReply(keep_text)


def messages_of(target: Target, prompt: Prompt) -> list[dict[str, Any]]:
    """The messages with the system prompt in front."""
    system = prompt.system or target.system
    return [*([{"role": "system", "content": system}] if system else []), *prompt.messages]


def bearer_headers(target: Target) -> list[tuple[str, str]]:
    """Content type, what is accepted, the key as a Bearer token, then the plan's own headers."""
    headers = [
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream" if target.stream else "application/json"),
    ]
    if target.api_key is not None:
        headers.append(("Authorization", f"Bearer {target.api_key.value}"))
    return headers + own_headers(target)


def own_headers(target: Target) -> list[tuple[str, str]]:
    """The headers that the plan gives."""
    return [(name, value if isinstance(value, str) else value.value) for name, value in target.headers.items()]
