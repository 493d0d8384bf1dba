"""Google Gemini and Vertex: GenerateContentResponses as SSE with CRLF, or as a JSON array (ai.google.dev/api)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import ID, Comment, Event, Part
from .provider import Ask, Outline, Route, Token, decoded, text_of, words_in

FINISH: Final[dict[str, str | None]] = {"stop": "STOP", "length": "MAX_TOKENS", "filter": "SAFETY", "none": None}
_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Content(msgspec.Struct):
    parts: list[dict[str, Any]] = []


class GenerationConfig(msgspec.Struct, rename="camel"):
    max_output_tokens: int | None = None


class GenerateRequest(msgspec.Struct, rename="camel"):
    contents: list[Content]
    system_instruction: Content | None = None
    generation_config: GenerationConfig | None = None


_DECODER: Final = msgspec.json.Decoder(GenerateRequest)


class Google:
    """With alt=sse."""

    name = "google"
    framing = "sse"
    crlf = True
    id_header = "x-sim-request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: GenerateRequest = decoded(_DECODER, body)
        contents = [*request.contents, *([request.system_instruction] if request.system_instruction else [])]
        return Ask(
            model=route.model,
            prompt_tokens=sum(words_in(content.parts) for content in contents),
            max_tokens=request.generation_config.max_output_tokens if request.generation_config else None,
            stream=route.stream,
        )

    def opening(self, outline: Outline) -> list[Part]:
        return []

    def token(self, outline: Outline, token: Token) -> list[Part]:
        part: dict[str, Any] = {"text": token.text}
        if token.reasoning:
            part["thought"] = True
        return [Event(_response(outline, [part]))]

    def closing(self, outline: Outline) -> list[Part]:
        return [Event(_response(outline, [{"text": ""}], finished=True))]

    def ping(self) -> Part:
        return Comment("keep-alive")

    def failure(self, message: str) -> Event:
        return Event({"error": {"code": 500, "message": message, "status": "INTERNAL"}})

    def complete(self, outline: Outline) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        if outline.reasoning:
            parts.append({"text": text_of(outline.reasoning), "thought": True})
        if outline.visible:
            parts.append({"text": text_of(outline.visible)})
        return _response(outline, parts, finished=True)

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"code": status, "message": message, "status": _STATUS.get(status, "UNKNOWN")}}


class GoogleArray(Google):
    """Without alt=sse: the same responses as elements of one JSON array."""

    name = "google-array"
    framing = "array"

    def token(self, outline: Outline, token: Token) -> list[Part]:
        return [Event(b"[" if token.number == 0 else b",\r\n"), *super().token(outline, token)]

    def closing(self, outline: Outline) -> list[Part]:
        between = Event(b",\r\n" if outline.output_tokens else b"[")
        return [between, *super().closing(outline), Event(b"]")]


def _response(outline: Outline, parts: list[dict[str, Any]], *, finished: bool = False) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    response: dict[str, Any] = {"candidates": [candidate], "modelVersion": outline.model, "responseId": ID}
    if finished:
        candidate["finishReason"] = FINISH[outline.finish]
        if outline.usage != "none":
            response["usageMetadata"] = _usage(outline)
    return response


def _usage(outline: Outline) -> dict[str, int]:
    usage = {
        "promptTokenCount": outline.prompt_tokens,
        "candidatesTokenCount": outline.visible,
        "totalTokenCount": outline.prompt_tokens + outline.output_tokens,
    }
    if outline.reasoning:
        usage["thoughtsTokenCount"] = outline.reasoning
    if outline.cached_tokens:
        usage["cachedContentTokenCount"] = outline.cached_tokens
    return usage
