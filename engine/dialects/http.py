"""Any endpoint that the plan describes: a body template, a framing, and JSON Pointers to what counts.

A stream's event is a token where the text or reasoning pointer finds something. Without any pointer and end marker the
events' own bytes are the text. A stream ends with `end_marker`, with an event whose `end` is true, or else its body.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from ..errors import PlanError
from ..plan.plan import Generic, Target
from ..plan.pointer import Steps, found_at, steps_of
from ..plan.template import Template
from ..records.record import Outcome
from . import END, FAILED, TOKEN, TOKEN_VISIBLE, HttpRequest, Prompt, Reply
from .content import bearer, flattened, headers_of
from .loose import DECODE_ERRORS, any_json, count, whole_characters
from .openai import messages_of
from .outcomes import message_in

COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
FILTERED: Final = frozenset({"content_filter", "refusal", "SAFETY"})
ACCEPT: Final = {"sse": "text/event-stream", "ndjson": "application/x-ndjson", "none": "application/json"}


class Pointers(NamedTuple):
    """The description's pointers taken apart; None for what it does not name."""

    text: Steps | None
    reasoning: Steps | None
    finish: Steps | None
    error: Steps | None
    end: Steps | None
    counts: tuple[tuple[str, Steps], ...]

    @property
    def none(self) -> bool:
        return not self.counts and self[:5] == (None,) * 5


class Recipe(NamedTuple):
    """A description of an endpoint, ready for use."""

    target: Target
    generic: Generic
    body: Template
    path: Template
    pointers: Pointers


class GenericReply(Reply):
    """One reply, streamed or complete, read by a description."""

    __slots__ = ("_marker", "_pointers", "_raw", "framing")

    def __init__(self, generic: Generic, pointers: Pointers, keep_text: bool = False) -> None:
        super().__init__(keep_text)
        self.framing = generic.framing
        self._pointers = pointers
        self._raw = pointers.none
        self._marker = None if generic.end_marker is None else generic.end_marker.encode()

    def event(self, data: bytes, name: bytes = b"") -> int:
        if self._marker is not None and data.strip() == self._marker:
            self.ended = True
            return END
        if self._raw:
            return self._plain(data)
        if not data.strip():
            return 0
        value = _decoded(data)
        return self._read(value) if value is not _MALFORMED else self.malformed("not JSON")

    def body(self, data: bytes) -> int:
        if self._raw:
            bits = self._plain(data)
        else:
            value = _decoded(data)
            bits = self._read(value) if value is not _MALFORMED else self.malformed("not JSON")
            if self._pointers.text is not None and not bits and not self.finish:
                bits = self.malformed("the reply has nothing where http.text points")
        self.ended = not bits & FAILED
        return bits | END

    def finished(self) -> bool:
        """Where the description names no end, the body's is one, after the finish reason if it names that."""
        if self.ended or self._marker is not None or self._pointers.end is not None:
            return self.ended
        return self._pointers.finish is None or self.finish is not None

    def _plain(self, data: bytes) -> int:
        self.said(data.decode("utf-8", "replace"))
        return TOKEN_VISIBLE if data else 0

    def _read(self, value: Any) -> int:
        pointers = self._pointers
        bits = 0
        if pointers.text is not None and (text := _text(found_at(pointers.text, value))):
            bits = TOKEN_VISIBLE
            self.said(text)
        if pointers.reasoning is not None and (thought := _text(found_at(pointers.reasoning, value))):
            bits |= TOKEN
            if self.keep_text:
                self.reasoning_text.append(thought)
        for name, steps in pointers.counts:
            tokens = found_at(steps, value)
            if isinstance(tokens, int | float) and not isinstance(tokens, bool):
                setattr(self, name, count(tokens))
        self.drop_empty_usage()
        if pointers.finish is not None and (finish := found_at(pointers.finish, value)):
            self.finish = str(finish)[:80]
            if self.finish in FILTERED:
                self.outcome = Outcome.CONTENT_FILTERED
        if pointers.error is not None and (error := found_at(pointers.error, value)):
            return bits | self.failed(message_in({"error": error}) or str(error))
        if pointers.end is not None and found_at(pointers.end, value):
            self.ended = True
            bits |= END
        return bits


class Http:
    """The `http` dialect. Remembers the last few targets' descriptions in their parsed form."""

    name = "http"
    default_base_url: str | None = None
    key_variable: str | None = None
    asks = "as the plan says"
    measures = "what the plan's JSON Pointers name"
    limits = (
        "no tool calls; counts only where a pointer finds them; chunks framing takes each piece of the body as a token"
    )

    def __init__(self) -> None:
        self._recipes: dict[int, Recipe] = {}

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        recipe = self._recipe(target)
        system = prompt.system or target.system
        if system and not {"system", "messages"} & recipe.body.names:
            raise PlanError(f"target {target.name!r} has a system prompt, but http.body has no {{{{system}}}} for it")
        columns = {
            **prompt.columns,
            "prompt": flattened(prompt),
            "model": target.model,
            "max_tokens": prompt.max_tokens,
            "stream": target.stream,
            "system": system,
            "messages": messages_of(target, prompt),
        }
        body = recipe.body.render(columns)
        if target.parameters:
            body = (body if isinstance(body, dict) else {}) | target.parameters
        path = recipe.path.render({name: _quoted(value) for name, value in columns.items()})
        headers = headers_of(target, *bearer(target))
        accept = ("Accept", ACCEPT.get(recipe.generic.framing, "*/*"))
        if not any(name.lower() == "accept" for name in target.headers):
            headers = [accept if pair[0] == "Accept" else pair for pair in headers]
        base = target.base_url.rstrip("/")
        return HttpRequest(
            recipe.generic.method,
            f"{base}/{path.lstrip('/')}" if path else base,
            headers,
            b"" if body is None else msgspec.json.encode(body),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        recipe = self._recipe(target)
        return GenericReply(recipe.generic, recipe.pointers, keep_text)

    def _recipe(self, target: Target) -> Recipe:
        known = self._recipes.get(id(target))
        if known is None or known.target is not target:
            if len(self._recipes) >= 256:
                self._recipes.clear()
            known = self._recipes[id(target)] = recipe_of(target)
        return known


def recipe_of(target: Target) -> Recipe:
    """The target's description in its parsed form. Raises PlanError for what it says wrong."""
    generic = target.http
    if generic is None:
        raise PlanError(f"target {target.name!r}: provider http needs http, which says how to ask and what to read")
    return Recipe(target, generic, Template(generic.body), Template(generic.path), pointers_of(generic))


def pointers_of(generic: Generic) -> Pointers:
    """All pointers of a description. Raises PlanError that names the key of a wrong one."""
    steps: dict[str, Steps | None] = {}
    for name in ("text", "reasoning", "finish", "error", "end", *COUNTS):
        pointer = getattr(generic, name)
        try:
            steps[name] = None if pointer is None else steps_of(pointer)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error
    counts = tuple((name, found) for name in COUNTS if (found := steps[name]) is not None)
    return Pointers(steps["text"], steps["reasoning"], steps["finish"], steps["error"], steps["end"], counts)


_MALFORMED: Final = object()


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except DECODE_ERRORS:
        try:
            return any_json(data)
        except (ValueError, RecursionError):
            return _MALFORMED


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "".join(whole_characters(part) for part in value if isinstance(part, str))
    return whole_characters(value) if isinstance(value, str) else ""


def _quoted(value: Any) -> str:
    return "" if value is None else quote(str(value), safe="")
