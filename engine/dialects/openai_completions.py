"""OpenAI completions, the older API: one text in, `choices[].text` out. vLLM, SGLang and llama.cpp speak it, too.

POST {base}/completions, Bearer. End and usage are those of chat completions. A conversation is sent as one text.
https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..plan.plan import Target
from ..records.record import Outcome
from . import END, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import bearer, flattened, headers_of
from .loose import DECODE_ERRORS, loosely
from .openai import (
    BROKEN_FINISHES,
    DONE,
    PUBLIC,
    Usage,
    bare_error,
    complete_body,
    failed_by,
    limited,
    not_an_object,
    note_timings,
    note_usage,
    parameters_of,
    streaming,
)


class Choice(msgspec.Struct, gc=False):
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    id: str | None = None


_decode = msgspec.json.Decoder(Chunk).decode


class CompletionReply(Reply):
    """One completion, streamed or complete."""

    __slots__ = ()

    def event(self, data: bytes, name: bytes = b"") -> int:
        if data == DONE:
            self.ended = True
            return END
        try:
            chunk = _decode(data)
        except DECODE_ERRORS as error:
            loose = loosely(Chunk, data)
            if loose is None:
                return not_an_object(self, data, error, name)
            chunk = loose
        bits = 0
        for choice in chunk.choices or ():
            if choice.text:
                bits = TOKEN_VISIBLE
                self.said(choice.text)
            if choice.finish_reason is not None:
                self.finish = choice.finish_reason
                if self.finish == "content_filter":
                    self.outcome = Outcome.CONTENT_FILTERED
        if self.request_id is None:
            self.request_id = chunk.id
        if self.finish is not None:
            note_timings(self, data)
        if chunk.usage is not None:
            note_usage(self, chunk.usage)
        if chunk.error:
            return bits | failed_by(self, chunk.error)
        if self.finish in BROKEN_FINISHES and not self.ended:
            return bits | self.failed(f"finish_reason {self.finish}")
        return bits if chunk.choices or chunk.usage is not None else bits | bare_error(self, data, name)

    def body(self, data: bytes) -> int:
        return complete_body(self, data)


class OpenAICompletions:
    """The `openai-completions` dialect."""

    name = "openai-completions"
    default_base_url: str | None = PUBLIC
    key_variable: str | None = "OPENAI_API_KEY"
    asks = "POST {base}/completions"
    measures = "text, usage with cached tokens"
    limits = "no messages: a conversation is sent as one text; no pictures; usage does not count reasoning separately"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        text = flattened(prompt, prompt.system or target.system)
        body: dict[str, Any] = {"model": target.model, "prompt": text}
        return HttpRequest(
            "POST",
            f"{target.base_url.rstrip('/')}/completions",
            headers_of(target, *bearer(target)),
            msgspec.json.encode(
                body | streaming(target) | limited(target, prompt, "max_tokens") | parameters_of(target)
            ),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return CompletionReply(keep_text)
