"""Anthropic messages: named events, blocks of thinking and text, cumulative output usage."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import ID, Event, Part
from .provider import Ask, Outline, Route, Token, decoded, text_of, words_in

FINISH: Final[dict[str, str | None]] = {"stop": "end_turn", "length": "max_tokens", "filter": "refusal", "none": None}
_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_SIGNATURE: Final = "c2ltdWxhdGVk"


class Message(msgspec.Struct):
    role: str
    content: Any


class MessagesRequest(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int
    system: Any = None
    stream: bool | None = False


_DECODER: Final = msgspec.json.Decoder(MessagesRequest)


class Anthropic:
    name = "anthropic"
    framing = "sse"
    crlf = False
    id_header = "request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: MessagesRequest = decoded(_DECODER, body)
        words = sum(words_in(message.content) for message in request.messages)
        return Ask(
            model=request.model,
            prompt_tokens=words + words_in(request.system),
            max_tokens=request.max_tokens,
            stream=bool(request.stream),
        )

    def opening(self, outline: Outline) -> list[Part]:
        message = _message(outline, [], None)
        if "usage" in message:
            message["usage"]["output_tokens"] = 1
        return [_event("message_start", message=message), self.ping()]

    def token(self, outline: Outline, token: Token) -> list[Part]:
        index = 1 if outline.reasoning and not token.reasoning else 0
        parts: list[Part] = []
        if token.first:
            if index:
                parts += _block_end(0, signed=True)
            parts.append(_event("content_block_start", index=index, content_block=_block("", thinking=token.reasoning)))
        if token.reasoning:
            delta = {"type": "thinking_delta", "thinking": token.text}
        else:
            delta = {"type": "text_delta", "text": token.text}
        return [*parts, _event("content_block_delta", index=index, delta=delta)]

    def closing(self, outline: Outline) -> list[Part]:
        parts: list[Part] = []
        if outline.output_tokens:
            both = bool(outline.reasoning and outline.visible)
            parts += _block_end(1 if both else 0, signed=not outline.visible)
        end: dict[str, Any] = {"delta": {"stop_reason": FINISH[outline.finish], "stop_sequence": None}}
        if outline.usage != "none":
            end["usage"] = {"output_tokens": outline.output_tokens}
        return [*parts, _event("message_delta", **end), _event("message_stop")]

    def ping(self) -> Part:
        return _event("ping")

    def failure(self, message: str) -> Event:
        return _event("error", error={"type": "overloaded_error", "message": message})

    def complete(self, outline: Outline) -> dict[str, Any]:
        content = [_block(text_of(outline.reasoning), thinking=True)] if outline.reasoning else []
        content += [_block(text_of(outline.visible), thinking=False)] if outline.visible else []
        return _message(outline, content, FINISH[outline.finish])

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        error = {"type": _KINDS.get(status, "api_error"), "message": message}
        return {"type": "error", "error": error, "request_id": f"req_{ID}"}


def _event(name: str, **fields: Any) -> Event:
    return Event({"type": name, **fields}, name)


def _block(text: str, *, thinking: bool) -> dict[str, Any]:
    if thinking:
        return {"type": "thinking", "thinking": text, "signature": _SIGNATURE if text else ""}
    return {"type": "text", "text": text}


def _block_end(index: int, *, signed: bool) -> list[Part]:
    signature = {"type": "signature_delta", "signature": _SIGNATURE}
    stop = _event("content_block_stop", index=index)
    return [_event("content_block_delta", index=index, delta=signature), stop] if signed else [stop]


def _message(outline: Outline, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": f"msg_{ID}",
        "type": "message",
        "role": "assistant",
        "model": outline.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }
    if outline.usage != "none":
        message["usage"] = {
            "input_tokens": outline.prompt_tokens - outline.cached_tokens,  # the cached ones are apart here
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": outline.cached_tokens,
            "output_tokens": outline.output_tokens,
            "service_tier": "standard",
        }
    return message
