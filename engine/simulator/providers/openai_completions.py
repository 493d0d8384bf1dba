"""OpenAI completions, the older API: text in, `choices[].text` out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import ID, Event, Part
from .openai_chat import DONE, FINISH, OpenAIChat, StreamOptions, usage_of
from .provider import CREATED, Ask, Invalid, Outline, Route, Token, decoded, text_of, words_in


class CompletionRequest(msgspec.Struct):
    prompt: Any
    model: str = ""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None


_DECODER: Final = msgspec.json.Decoder(CompletionRequest)


class OpenAICompletions(OpenAIChat):
    """Errors, pings and failures are those of chat. Reasoning tokens are text like any other here."""

    name = "openai-completions"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: CompletionRequest = decoded(_DECODER, body)
        model = route.model or request.model
        if not model:
            raise Invalid("you must provide a model parameter")
        return Ask(
            model=model,
            prompt_tokens=words_in(request.prompt),
            max_tokens=request.max_tokens,
            stream=bool(request.stream),
            usage=not request.stream or bool(request.stream_options and request.stream_options.include_usage),
        )

    def opening(self, outline: Outline) -> list[Part]:
        return []

    def token(self, outline: Outline, token: Token) -> list[Part]:
        return [Event(_chunk(outline.model, token.text))]

    def closing(self, outline: Outline) -> list[Part]:
        finish = _chunk(outline.model, "", FINISH[outline.finish])
        if outline.usage == "in_finish":
            return [Event(finish | {"usage": usage_of(outline)}), DONE]
        if outline.usage == "none":
            return [Event(finish), DONE]
        return [Event(finish), Event(finish | {"choices": [], "usage": usage_of(outline)}), DONE]

    def complete(self, outline: Outline) -> dict[str, Any]:
        text = text_of(outline.reasoning) + text_of(outline.visible)
        reply = _chunk(outline.model, text, FINISH[outline.finish])
        return reply | ({} if outline.usage == "none" else {"usage": usage_of(outline)})


def _chunk(model: str, text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return {"id": f"cmpl-{ID}", "object": "text_completion", "created": CREATED, "model": model, "choices": [choice]}
