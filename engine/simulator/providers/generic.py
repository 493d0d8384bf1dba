"""APIs that the lens reads by description: Ollama's chat (NDJSON), TGI's generate_stream, and a plain JSON endpoint."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import Comment, Event, Part
from .provider import Ask, Outline, Route, Token, decoded, text_of, words_in

_CREATED_AT: Final = "2025-06-15T15:06:40.000000Z"
_OLLAMA_FINISH: Final[dict[str, str | None]] = {
    "stop": "stop",
    "length": "length",
    "filter": "content_filter",
    "none": None,
}
_TGI_FINISH: Final[dict[str, str | None]] = {
    "stop": "eos_token",
    "length": "length",
    "filter": "content_filter",
    "none": None,
}


class OllamaMessage(msgspec.Struct):
    role: str
    content: Any = None


class OllamaOptions(msgspec.Struct):
    num_predict: int | None = None


class OllamaRequest(msgspec.Struct):
    model: str
    messages: list[OllamaMessage]
    stream: bool = True
    options: OllamaOptions | None = None


class TgiParameters(msgspec.Struct):
    max_new_tokens: int | None = None


class TgiRequest(msgspec.Struct):
    inputs: str
    parameters: TgiParameters | None = None


class PlainRequest(msgspec.Struct):
    prompt: str
    model: str = "sim"
    max_tokens: int | None = None
    stream: bool = False


_OLLAMA: Final = msgspec.json.Decoder(OllamaRequest)
_TGI: Final = msgspec.json.Decoder(TgiRequest)
_PLAIN: Final = msgspec.json.Decoder(PlainRequest)


class Ollama:
    """`/api/chat`: a JSON object a line, the last with `done` and the counts (docs.ollama.com/api/chat)."""

    name = "ollama"
    framing = "ndjson"
    crlf = False
    id_header = "x-sim-request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: OllamaRequest = decoded(_OLLAMA, body)
        limit = request.options.num_predict if request.options else None
        return Ask(
            model=request.model,
            prompt_tokens=sum(words_in(message.content) for message in request.messages),
            max_tokens=limit if limit is not None and limit >= 0 else None,  # -1: no limit
            stream=request.stream,
        )

    def opening(self, outline: Outline) -> list[Part]:
        return []

    def token(self, outline: Outline, token: Token) -> list[Part]:
        message = {"role": "assistant", "content": "" if token.reasoning else token.text}
        if token.reasoning:
            message["thinking"] = token.text
        return [Event(_ollama(outline, message) | {"done": False})]

    def closing(self, outline: Outline) -> list[Part]:
        return [Event(_ollama(outline, {"role": "assistant", "content": ""}) | self._end(outline))]

    def ping(self) -> Part:
        return Comment("")

    def failure(self, message: str) -> Event:
        return Event({"error": message})

    def complete(self, outline: Outline) -> dict[str, Any]:
        message = {"role": "assistant", "content": text_of(outline.visible)}
        if outline.reasoning:
            message["thinking"] = text_of(outline.reasoning)
        return _ollama(outline, message) | self._end(outline)

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": message}

    def _end(self, outline: Outline) -> dict[str, Any]:
        end: dict[str, Any] = {"done": True, "done_reason": _OLLAMA_FINISH[outline.finish]}
        if outline.usage != "none":
            end |= {"prompt_eval_count": outline.prompt_tokens, "eval_count": outline.output_tokens}
        return end


class Tgi:
    """`/generate_stream` and `/generate` of text-generation-inference: the last event has all the text and details."""

    name = "tgi"
    framing = "sse"
    crlf = False
    id_header = "x-sim-request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: TgiRequest = decoded(_TGI, body)
        limit = request.parameters.max_new_tokens if request.parameters else None
        return Ask(model="sim", prompt_tokens=words_in(request.inputs), max_tokens=limit, stream=route.stream)

    def opening(self, outline: Outline) -> list[Part]:
        return []

    def token(self, outline: Outline, token: Token) -> list[Part]:
        return [Event(_tgi_event(token.so_far, token.text))]

    def closing(self, outline: Outline) -> list[Part]:
        end = _tgi_event(outline.output_tokens + 1, "", special=True)
        return [Event(end | self.complete(outline))]

    def ping(self) -> Part:
        return Comment("")

    def failure(self, message: str) -> Event:
        return Event({"error": message, "error_type": "generation"})

    def complete(self, outline: Outline) -> dict[str, Any]:
        details: dict[str, Any] = {"finish_reason": _TGI_FINISH[outline.finish], "seed": None}
        if outline.usage != "none":
            details |= {"generated_tokens": outline.output_tokens, "input_length": outline.prompt_tokens}
        return {"generated_text": text_of(outline.reasoning) + text_of(outline.visible), "details": details}

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": message, "error_type": "overloaded" if status in (429, 503) else "validation"}


class Plain:
    """`/plain`: `{"prompt"}` in, `{"text", "finish", "usage"}` out; with `stream` a line of `{"text"}` per token."""

    name = "plain"
    framing = "ndjson"
    crlf = False
    id_header = "x-sim-request-id"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: PlainRequest = decoded(_PLAIN, body)
        words = words_in(request.prompt)
        return Ask(model=request.model, prompt_tokens=words, max_tokens=request.max_tokens, stream=request.stream)

    def opening(self, outline: Outline) -> list[Part]:
        return []

    def token(self, outline: Outline, token: Token) -> list[Part]:
        return [Event({"reasoning" if token.reasoning else "text": token.text})]

    def closing(self, outline: Outline) -> list[Part]:
        return [Event({"done": True, **_plain_end(outline)})]

    def ping(self) -> Part:
        return Comment("")

    def failure(self, message: str) -> Event:
        return Event({"error": message})

    def complete(self, outline: Outline) -> dict[str, Any]:
        reply = {"text": text_of(outline.visible)} | _plain_end(outline)
        return reply | ({"reasoning": text_of(outline.reasoning)} if outline.reasoning else {})

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": message}


def _ollama(outline: Outline, message: dict[str, str]) -> dict[str, Any]:
    return {"model": outline.model, "created_at": _CREATED_AT, "message": message}


def _tgi_event(index: int, text: str, *, special: bool = False) -> dict[str, Any]:
    token = {"id": index, "text": text, "logprob": -0.5, "special": special}
    return {"index": index, "token": token, "generated_text": None, "details": None}


def _plain_end(outline: Outline) -> dict[str, Any]:
    end: dict[str, Any] = {"finish": outline.finish}
    if outline.usage != "none":
        end["usage"] = {"input_tokens": outline.prompt_tokens, "output_tokens": outline.output_tokens}
        end["usage"] |= {"cached_tokens": outline.cached_tokens, "reasoning_tokens": outline.reasoning}
    return end
