"""The rendering of replies, cached: equal outlines of one API share the frames of their opening, tokens and closing."""

from __future__ import annotations

from typing import Final

from ..framing import FRAMINGS, ID_BYTES, LAST_CHUNK, Event, Frame, Part, chunk, plain, with_id_fields
from ..providers.provider import Outline, Provider, Token, text_of

CACHED_OUTLINES: Final = 1024
CACHED_TOKEN_LISTS: Final = 64


class Rendering:
    """All frames of one reply. Token frames are rendered when first needed and shared between outlines."""

    __slots__ = ("_framing", "closing", "complete", "events", "frames", "opening", "outline", "provider")

    def __init__(self, provider: Provider, outline: Outline, tokens: dict[int, Frame]) -> None:
        framing = FRAMINGS[provider.framing][0]
        self.provider = provider
        self._framing = framing
        self.frames = tokens  # token frames that exist already, by index
        self.outline = outline
        self.events = sum(-(-part // outline.per_event) for part in (outline.reasoning, outline.visible))
        self.opening = chunk(provider.opening(outline), framing, outline.newline)
        closing = chunk(provider.closing(outline), framing, outline.newline)
        self.closing = closing._replace(format=closing.format + LAST_CHUNK)
        self.complete = plain(provider.complete(outline))

    def token(self, index: int) -> Frame:
        """The frame of the `index`-th token event: fields (send time, id) per stamp."""
        frame = self.frames.get(index)
        if frame is None:
            parts = self.provider.token(self.outline, self._token(index))
            frame = self.frames[index] = with_id_fields(chunk(parts, self._framing, self.outline.newline))
        return frame

    def tokens_of(self, index: int) -> int:
        """How many tokens the `index`-th token event carries."""
        return self._span(index)[1]

    def failure(self, message: str, *, position: int) -> Frame:
        """An error event after `position` token events."""
        parts: list[Part] = [self.provider.failure(message)]
        if self.provider.framing == "array":
            parts = [Event(b",\r\n" if position else b"["), *parts, Event(b"]")]
        return chunk(parts, self._framing, self.outline.newline)

    def ping(self) -> Frame:
        return chunk([self.provider.ping()], self._framing, self.outline.newline)

    def broken(self, index: int) -> Frame:
        """A token event whose JSON is not JSON."""
        parts = self.provider.token(self.outline, self._token(index))
        return chunk(
            [_broken(part) if isinstance(part, Event) else part for part in parts], self._framing, self.outline.newline
        )

    def _token(self, index: int) -> Token:
        start, count, reasoning = self._span(index)
        so_far = start + count + (0 if reasoning else self.outline.reasoning)
        return Token(index, text_of(count, start), reasoning, start == 0, so_far)

    def _span(self, index: int) -> tuple[int, int, bool]:
        """(first token of its kind, count, is it reasoning) of one token event."""
        outline = self.outline
        thinking = -(-outline.reasoning // outline.per_event)
        reasoning = index < thinking
        start = (index if reasoning else index - thinking) * outline.per_event
        total = outline.reasoning if reasoning else outline.visible
        return start, min(outline.per_event, total - start), reasoning


def _broken(event: Event) -> Event:
    return (
        event._replace(fields=b'{"sim_id":"' + ID_BYTES + b'","broken":}') if isinstance(event.fields, dict) else event
    )


class Templates:
    """Renderings by what they depend on, bounded."""

    __slots__ = ("_renderings", "_tokens")

    def __init__(self) -> None:
        self._renderings: dict[tuple[str, Outline], Rendering] = {}
        self._tokens: dict[tuple[object, ...], dict[int, Frame]] = {}

    def rendering(self, provider: Provider, outline: Outline) -> Rendering:
        """The frames of such a reply."""
        key = (provider.name, outline)
        known = self._renderings.get(key)
        if known is None:
            if len(self._renderings) >= CACHED_OUTLINES:
                self._renderings.clear()
            known = self._renderings[key] = Rendering(provider, outline, self._tokens_for(provider, outline))
        return known

    def _tokens_for(self, provider: Provider, outline: Outline) -> dict[int, Frame]:
        # The last event of several tokens depends on how many there are; single ones do not.
        shape = outline.visible if outline.per_event > 1 else -1
        key = (
            provider.name,
            outline.model,
            outline.reasoning,
            outline.per_event,
            outline.newline,
            outline.role_chunk,
            shape,
        )
        if len(self._tokens) >= CACHED_TOKEN_LISTS and key not in self._tokens:
            self._tokens.clear()
        return self._tokens.setdefault(key, {})
