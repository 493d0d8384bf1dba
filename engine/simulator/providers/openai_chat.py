"""OpenAI chat completions (platform.openai.com/docs/api-reference/chat), also as vLLM, SGLang and Azure speak it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from ..framing import ID, Comment, Event, Part
from .provider import CREATED, Ask, Invalid, Outline, Route, Token, decoded, text_of, words_in

DONE: Final = Event(b"[DONE]")
FINISH: Final[dict[str, str | None]] = {"stop": "stop", "length": "length", "filter": "content_filter", "none": None}
SAFE: Final = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class ChatMessage(msgspec.Struct):
    role: str
    content: Any = None


class ChatRequest(msgspec.Struct):
    messages: list[ChatMessage]
    model: str = ""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_DECODER: Final = msgspec.json.Decoder(ChatRequest)


class OpenAIChat:
    name = "openai"
    framing = "sse"
    crlf = False
    id_header = "x-request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: ChatRequest = decoded(_DECODER, body)
        model = route.model or request.model
        if not model:
            raise Invalid("you must provide a model parameter")
        return Ask(
            model=model,
            prompt_tokens=sum(words_in(message.content) for message in request.messages),
            max_tokens=request.max_completion_tokens or request.max_tokens,
            stream=bool(request.stream),
            usage=not request.stream or bool(request.stream_options and request.stream_options.include_usage),
        )

    def opening(self, outline: Outline) -> list[Part]:
        if not outline.role_chunk:
            return []
        return [Event(_chunk(outline.model, {"role": "assistant", "content": "", "refusal": None}))]

    def token(self, outline: Outline, token: Token) -> list[Part]:
        return [Event(_chunk(outline.model, {"reasoning_content" if token.reasoning else "content": token.text}))]

    def closing(self, outline: Outline) -> list[Part]:
        finish = _chunk(outline.model, {}, FINISH[outline.finish])
        if outline.usage == "in_finish":
            return [Event(finish | {"usage": usage_of(outline)}), DONE]
        if outline.usage == "none":
            return [Event(finish), DONE]
        return [Event(finish), Event(_chunk(outline.model) | {"usage": usage_of(outline)}), DONE]

    def ping(self) -> Part:
        return Comment("SIMULATOR PROCESSING")

    def failure(self, message: str) -> Event:
        return Event({"error": {"message": message, "type": "server_error", "param": None, "code": "internal_error"}})

    def complete(self, outline: Outline) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text_of(outline.visible), "refusal": None}
        if outline.reasoning:
            message["reasoning_content"] = text_of(outline.reasoning)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[outline.finish]}
        reply = {"id": f"chatcmpl-{ID}", "object": "chat.completion", "created": CREATED, "model": outline.model}
        return reply | {"choices": [choice]} | ({} if outline.usage == "none" else {"usage": usage_of(outline)})

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": _KINDS.get(status, "server_error"), "param": None, "code": None}}


class AzureChat(OpenAIChat):
    """OpenAI's bodies under a deployment's path; a chunk of prompt filter results comes first."""

    name = "azure-openai"

    def ask(self, body: bytes, route: Route) -> Ask:
        if "api-version" not in parse_qs(route.query):
            raise Invalid("Missing required query parameter: api-version")
        return super().ask(body, route)

    def opening(self, outline: Outline) -> list[Part]:
        results = [{"prompt_index": 0, "content_filter_results": SAFE}]
        # Has neither a choice nor an id: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-streaming
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": results}
        return [Event(first), *super().opening(outline)]

    def complete(self, outline: Outline) -> dict[str, Any]:
        reply = super().complete(outline)
        reply["choices"][0]["content_filter_results"] = SAFE
        results = [{"prompt_index": 0, "content_filter_results": SAFE}]
        return reply | {"created": CREATED, "prompt_filter_results": results}

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"code": str(status), "message": message}}


def _chunk(model: str, delta: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {
        "id": f"chatcmpl-{ID}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "system_fingerprint": "fp_sim",
        "choices": choices,
    }


def usage_of(outline: Outline) -> dict[str, Any]:
    """Usage as chat and completions report it."""
    return {
        "prompt_tokens": outline.prompt_tokens,
        "completion_tokens": outline.output_tokens,
        "total_tokens": outline.prompt_tokens + outline.output_tokens,
        "prompt_tokens_details": {"cached_tokens": outline.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": outline.reasoning, "audio_tokens": 0},
    }
