"""Cohere chat, version 2: events named by their `type`, content items, usage in message-end."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import ID, Comment, Event, Part
from .provider import Ask, Outline, Route, Token, decoded, text_of, words_in

FINISH: Final[dict[str, str | None]] = {
    "stop": "COMPLETE",
    "length": "MAX_TOKENS",
    "filter": "ERROR_TOXIC",
    "none": None,
}


class Message(msgspec.Struct):
    role: str
    content: Any = None


class ChatRequest(msgspec.Struct):
    model: str
    messages: list[Message]
    stream: bool | None = False
    max_tokens: int | None = None


_DECODER: Final = msgspec.json.Decoder(ChatRequest)


class Cohere:
    name = "cohere"
    framing = "sse"
    crlf = False
    id_header = "x-debug-trace-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: ChatRequest = decoded(_DECODER, body)
        return Ask(
            model=request.model,
            prompt_tokens=sum(words_in(message.content) for message in request.messages),
            max_tokens=request.max_tokens,
            stream=bool(request.stream),
        )

    def opening(self, outline: Outline) -> list[Part]:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        return [_event("message-start", id=ID, delta={"message": message})]

    def token(self, outline: Outline, token: Token) -> list[Part]:
        index = 1 if outline.reasoning and not token.reasoning else 0
        kind = "thinking" if token.reasoning else "text"
        parts: list[Part] = []
        if token.first:
            if index:
                parts.append(_event("content-end", index=0))
            content = {"type": kind, kind: ""}
            parts.append(_event("content-start", index=index, delta={"message": {"content": content}}))
        return [*parts, _event("content-delta", index=index, delta={"message": {"content": {kind: token.text}}})]

    def closing(self, outline: Outline) -> list[Part]:
        parts: list[Part] = []
        if outline.output_tokens:
            parts.append(_event("content-end", index=1 if outline.reasoning and outline.visible else 0))
        delta: dict[str, Any] = {"finish_reason": FINISH[outline.finish]}
        if outline.usage != "none":
            delta["usage"] = _usage(outline)
        return [*parts, _event("message-end", id=ID, delta=delta)]

    def ping(self) -> Part:
        return Comment("keep-alive")

    def failure(self, message: str) -> Event:
        return _event("message-end", id=ID, delta={"finish_reason": "ERROR", "error": message})

    def complete(self, outline: Outline) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if outline.reasoning:
            content.append({"type": "thinking", "thinking": text_of(outline.reasoning)})
        if outline.visible:
            content.append({"type": "text", "text": text_of(outline.visible)})
        reply = {
            "id": ID,
            "finish_reason": FINISH[outline.finish],
            "message": {"role": "assistant", "content": content},
        }
        return reply | ({} if outline.usage == "none" else {"usage": _usage(outline)})

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"id": ID, "message": message}


def _event(name: str, **fields: Any) -> Event:
    return Event({"type": name, **fields}, name)


def _usage(outline: Outline) -> dict[str, Any]:
    counts = {"input_tokens": outline.prompt_tokens, "output_tokens": outline.output_tokens}
    return {"billed_units": counts, "tokens": counts, "cached_tokens": outline.cached_tokens}
