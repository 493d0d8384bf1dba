"""OpenAI responses: named events, numbered in sequence, no [DONE]."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..framing import ID, Comment, Event, Part
from .openai_chat import OpenAIChat
from .provider import CREATED, Ask, Invalid, Outline, Route, Token, decoded, text_of, words_in

_STATUS: Final = {"stop": "completed", "length": "incomplete", "filter": "incomplete", "none": "completed"}
_INCOMPLETE: Final = {
    "stop": None,
    "length": {"reason": "max_output_tokens"},
    "filter": {"reason": "content_filter"},
    "none": None,
}
OPENING_EVENTS: Final = 2  # created, in_progress
ITEM_EVENTS: Final = 2  # item added, part added: before an item's first delta
DONE_EVENTS: Final = 3  # text done, part done, item done: after its last


class ResponsesRequest(msgspec.Struct):
    input: Any
    model: str = ""
    instructions: str | None = None
    stream: bool | None = False
    max_output_tokens: int | None = None


_DECODER: Final = msgspec.json.Decoder(ResponsesRequest)


class OpenAIResponses(OpenAIChat):
    """HTTP errors are those of chat."""

    name = "openai-responses"

    def ask(self, body: bytes, route: Route) -> Ask:
        request: ResponsesRequest = decoded(_DECODER, body)
        if not request.model:
            raise Invalid("you must provide a model parameter")
        items = request.input if isinstance(request.input, list) else [{"content": request.input}]
        words = sum(words_in(item.get("content")) for item in items if isinstance(item, dict))
        return Ask(
            model=request.model,
            prompt_tokens=words + words_in(request.instructions),
            max_tokens=request.max_output_tokens,
            stream=bool(request.stream),
        )

    def opening(self, outline: Outline) -> list[Part]:
        response = _response(outline, "in_progress", output=[])
        names = ("response.created", "response.in_progress")
        return [_event(name, number, response=response) for number, name in enumerate(names)]

    def token(self, outline: Outline, token: Token) -> list[Part]:
        thinking = -(-outline.reasoning // outline.per_event)
        number = OPENING_EVENTS + token.number + ITEM_EVENTS
        parts: list[Part] = []
        if not token.reasoning and thinking:
            number += ITEM_EVENTS + DONE_EVENTS
            if token.first:
                parts += _item_done(outline, number - ITEM_EVENTS - DONE_EVENTS, reasoning=True, index=0)
        index = 1 if thinking and not token.reasoning else 0
        if token.first:
            parts += _item_added(number - ITEM_EVENTS, reasoning=token.reasoning, index=index)
        name = "response.reasoning_text.delta" if token.reasoning else "response.output_text.delta"
        return [*parts, _event(name, number, **_position(token.reasoning, index), delta=token.text, logprobs=[])]

    def closing(self, outline: Outline) -> list[Part]:
        kinds = [reasoning for reasoning, count in ((True, outline.reasoning), (False, outline.visible)) if count]
        events = sum(-(-count // outline.per_event) for count in (outline.reasoning, outline.visible))
        number = OPENING_EVENTS + events + len(kinds) * ITEM_EVENTS + max(0, len(kinds) - 1) * DONE_EVENTS
        parts: list[Part] = []
        if kinds:
            parts += _item_done(outline, number, reasoning=kinds[-1], index=len(kinds) - 1)
        status = _STATUS[outline.finish]
        return [*parts, _event(f"response.{status}", number + len(parts), response=_response(outline, status))]

    def ping(self) -> Part:
        return Comment("keep-alive")

    def failure(self, message: str) -> Event:
        return _event("error", 0, code="server_error", message=message, param=None)

    def complete(self, outline: Outline) -> dict[str, Any]:
        return _response(outline, _STATUS[outline.finish])


def _event(name: str, number: int, **fields: Any) -> Event:
    return Event({"type": name, "sequence_number": number, **fields}, name)


def _position(reasoning: bool, index: int) -> dict[str, Any]:
    return {"item_id": f"{'rs' if reasoning else 'msg'}_{ID}", "output_index": index, "content_index": 0}


def _item(text: str, *, reasoning: bool, status: str) -> dict[str, Any]:
    content = [_part(text, reasoning=reasoning)] if text else []
    if reasoning:
        return {"id": f"rs_{ID}", "type": "reasoning", "summary": [], "content": content, "status": status}
    return {"id": f"msg_{ID}", "type": "message", "role": "assistant", "content": content, "status": status}


def _part(text: str, *, reasoning: bool) -> dict[str, Any]:
    if reasoning:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item_added(number: int, *, reasoning: bool, index: int) -> list[Event]:
    item = _item("", reasoning=reasoning, status="in_progress")
    return [
        _event("response.output_item.added", number, output_index=index, item=item),
        _event(
            "response.content_part.added",
            number + 1,
            **_position(reasoning, index),
            part=_part("", reasoning=reasoning),
        ),
    ]


def _item_done(outline: Outline, number: int, *, reasoning: bool, index: int) -> list[Event]:
    text = text_of(outline.reasoning if reasoning else outline.visible)
    position = _position(reasoning, index)
    name = "response.reasoning_text.done" if reasoning else "response.output_text.done"
    return [
        _event(name, number, **position, text=text, logprobs=[]),
        _event("response.content_part.done", number + 1, **position, part=_part(text, reasoning=reasoning)),
        _event(
            "response.output_item.done",
            number + 2,
            output_index=index,
            item=_item(text, reasoning=reasoning, status="completed"),
        ),
    ]


def _response(outline: Outline, status: str, output: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    done = status != "in_progress"
    if output is None:
        output = [_item(text_of(outline.reasoning), reasoning=True, status="completed")] if outline.reasoning else []
        output += [_item(text_of(outline.visible), reasoning=False, status=status)] if outline.visible else []
    return {
        "id": f"resp_{ID}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": _INCOMPLETE[outline.finish] if done else None,
        "instructions": None,
        "metadata": {},
        "model": outline.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": _usage(outline) if done and outline.usage != "none" else None,
    }


def _usage(outline: Outline) -> dict[str, Any]:
    return {
        "input_tokens": outline.prompt_tokens,
        "input_tokens_details": {"cached_tokens": outline.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": outline.output_tokens,
        "output_tokens_details": {"reasoning_tokens": outline.reasoning},
        "total_tokens": outline.prompt_tokens + outline.output_tokens,
    }
