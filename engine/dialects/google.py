"""Google Gemini and Vertex AI: GenerateContentResponses as SSE with CRLF, or as the elements of one JSON array.

POST {base}/{api_version}/models/{model}:streamGenerateContent?alt=sse with x-goog-api-key. At Vertex AI (a host in
aiplatform.googleapis.com, or /projects/ in the base URL), {base}/publishers/google/models/{model}:... with a Bearer token; the base URL ends in
/v1/projects/P/locations/L there. There is no terminal event: a reply is complete when its body ends after a finishReason.
Usage is cumulative. https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from ..plan.plan import Target
from ..records.record import Outcome
from . import END, FAILED, TOKEN, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import Image, bearer, headers_of, keyed, parts_of
from .loose import DECODE_ERRORS, count, loosely
from .outcomes import message_in

API_VERSION: Final = "v1beta"
API_VERSIONS: Final = frozenset({"v1", "v1alpha", "v1beta", "v1beta1"})
VERTEX: Final = "aiplatform.googleapis.com"
FILTERED: Final = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
    }
)
UNSPECIFIED: Final = "FINISH_REASON_UNSPECIFIED"  # the enumeration's zero: not finished
PLAIN: Final = frozenset({"TEXT", None})  # other modalities have prices of their own
MEDIA: Final = {"png": "image/png", "webp": "image/webp", "gif": "image/gif"}


class Part(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    function_call: Any = None
    executable_code: Any = None
    inline_data: Any = None


class Content(msgspec.Struct, gc=False):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, gc=False, rename="camel"):
    index: int = 0
    content: Content | None = None
    finish_reason: str | None = None
    grounding_metadata: Any = None


class Modality(msgspec.Struct, gc=False, rename="camel"):
    modality: str | None = None
    token_count: int | None = None


class Usage(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    prompt_tokens_details: list[Modality] | None = None
    tool_use_prompt_tokens_details: list[Modality] | None = None
    candidates_tokens_details: list[Modality] | None = None


class Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class Response(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[Candidate] | None = None
    usage_metadata: Usage | None = None
    prompt_feedback: Feedback | None = None
    error: Any = None
    response_id: str | None = None


_decode = msgspec.json.Decoder(Response).decode


class GenerateReply(Reply):
    """One generated content, streamed or complete. `ended` is the finish reason; the body's end is the end."""

    __slots__ = ("_candidates", "_finished", "_prompt", "_seen", "_thoughts", "_tools")
    json_framing = "json"

    def __init__(self, keep_text: bool = False) -> None:
        super().__init__(keep_text)
        self._seen: set[int] = set()  # candidates by index
        self._finished: set[int] = set()
        self._prompt: int | None = None
        self._tools: int | None = None
        self._candidates: int | None = None
        self._thoughts: int | None = None

    def event(self, data: bytes, name: bytes = b"") -> int:
        try:
            response = _decode(data)
        except DECODE_ERRORS as error:
            loose = loosely(Response, data)
            if loose is None:
                return self.not_json(data, name, error)
            response = loose
        bits = 0
        for candidate in response.candidates or ():
            self._seen.add(candidate.index)
            if candidate.content is not None:
                for part in candidate.content.parts or ():
                    bits |= self._said(part)
            self.billed_beyond_tokens(candidate.grounding_metadata)
            if candidate.finish_reason and candidate.finish_reason != UNSPECIFIED:
                self._finished.add(candidate.index)
                self._finish(candidate.finish_reason, candidate.finish_reason in FILTERED)
        if response.prompt_feedback is not None and response.prompt_feedback.block_reason:
            self._finish(response.prompt_feedback.block_reason, True)
        if response.usage_metadata is not None:
            self._usage(response.usage_metadata)
        if self.request_id is None:
            self.request_id = response.response_id
        if response.error:
            status = response.error.get("status") if isinstance(response.error, dict) else None
            message = message_in({"error": response.error}) or ""
            bits |= self.failed(f"{status}: {message}" if status else message)
        return bits

    def body(self, data: bytes) -> int:
        bits = 0
        for element in _elements(data):
            bits |= self.event(element)
        if not bits & FAILED and not self.ended:
            bits |= self.malformed("the reply has no finishReason")
        return bits | END

    def _said(self, part: Part) -> int:
        if part.text:
            if part.thought:
                if self.keep_text:
                    self.reasoning_text.append(part.text)
                return TOKEN
            self.said(part.text)
            return TOKEN_VISIBLE
        return TOKEN_VISIBLE if part.function_call or part.executable_code or part.inline_data else 0

    def _finish(self, reason: str, filtered: bool) -> None:
        self.finish = reason
        self.ended = self._seen <= self._finished
        if filtered:
            self.outcome = Outcome.CONTENT_FILTERED

    def _usage(self, usage: Usage) -> None:
        """Takes the counts so far. The candidates' do not include thoughts, nor the prompt's what tools gave."""
        if usage.prompt_token_count == 0 and not usage.candidates_token_count:
            return  # a usage of 0/0 is none
        for details in (
            usage.prompt_tokens_details,
            usage.tool_use_prompt_tokens_details,
            usage.candidates_tokens_details,
        ):
            if details:
                self.billed_beyond_tokens(any(each.token_count and each.modality not in PLAIN for each in details))
        if usage.prompt_token_count is not None:
            self._prompt = usage.prompt_token_count
        if usage.tool_use_prompt_token_count is not None:
            self._tools = usage.tool_use_prompt_token_count
        if usage.candidates_token_count is not None:
            self._candidates = usage.candidates_token_count
        if usage.thoughts_token_count is not None:
            self._thoughts = usage.thoughts_token_count
            self.reasoning_tokens = count(self._thoughts)
        if usage.cached_content_token_count is not None:
            self.cached_tokens = count(usage.cached_content_token_count)
        self.input_tokens = _sum(self._prompt, self._tools)
        self.output_tokens = _sum(self._candidates, self._thoughts)


def _sum(*counts: int | None) -> int:
    known = [tokens for tokens in counts if tokens is not None]
    return count(sum(known) if known else None)


def _elements(data: bytes) -> list[bytes]:
    """The responses of a body, which is one or an array of them."""
    if data.lstrip()[:1] != b"[":
        return [data]
    try:
        return [bytes(element) for element in msgspec.json.decode(data, type=list[msgspec.Raw])]
    except DECODE_ERRORS:
        return [data]


class Google:
    """The `google` dialect."""

    name = "google"
    default_base_url: str | None = "https://generativelanguage.googleapis.com"
    key_variable: str | None = "GEMINI_API_KEY"
    asks = "POST {base}/v1beta/models/{model}:streamGenerateContent"
    measures = "text, thoughts, function calls, usage with cached and thought tokens, blocked prompts"
    limits = (
        "no terminal event: a stream cut after its finishReason is not noticed; Vertex AI needs a Bearer token as key"
    )

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        system = prompt.system or target.system
        body: dict[str, Any] = {"contents": [_content(message) for message in prompt.messages]}
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        body |= target.parameters
        given = target.parameters.get("generationConfig", {})
        if prompt.max_tokens is not None and isinstance(given, dict):
            body["generationConfig"] = {"maxOutputTokens": prompt.max_tokens} | given
        parts = urlsplit(target.base_url)
        vertex = (parts.hostname or "").endswith(VERTEX) or "/projects/" in parts.path
        return HttpRequest(
            "POST",
            _url(target, vertex=vertex),
            headers_of(target, *(bearer(target) if vertex else keyed(target, "x-goog-api-key"))),
            msgspec.json.encode(body),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return GenerateReply(keep_text)


def _url(target: Target, *, vertex: bool) -> str:
    base = target.base_url.rstrip("/")
    model = quote(target.model, safe="/@")
    if vertex:
        model = model if model.startswith("publishers/") else f"publishers/google/models/{model}"
    else:
        if base.rpartition("/")[2] not in API_VERSIONS:
            base = f"{base}/{target.api_version or API_VERSION}"
        model = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    return f"{base}/{model}:{'streamGenerateContent?alt=sse' if target.stream else 'generateContent'}"


def _content(message: dict[str, Any]) -> dict[str, Any]:
    role = "model" if message.get("role") == "assistant" else "user"
    return {"role": role, "parts": [_part(part) for part in parts_of(message.get("content"))]}


def _part(part: str | Image | dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if not isinstance(part, Image):
        return part
    if part.base64:
        return {"inlineData": {"mimeType": part.media_type, "data": part.base64}}
    suffix = part.url.partition("?")[0].rpartition(".")[2].lower()
    return {"fileData": {"mimeType": MEDIA.get(suffix, "image/jpeg"), "fileUri": part.url}}
