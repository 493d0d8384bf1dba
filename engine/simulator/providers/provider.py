"""What every API of the simulator offers (`Provider`), and the values it takes and returns. framing.py makes the bytes.

What a reply says is an `Outline`; its words are always the same, so that a test knows them: `text_of(n)`. Only the
first word has a part of its own for each prompt: a server that says the same to everybody is one that cheats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from ..framing import Event, Part

WORDS: Final = tuple(
    " " + word
    for word in (
        "light", "takes", "eight", "minutes", "to", "cross", "what", "a", "café", "in", "“Zürich”", "calls", "the",
        "way", "from", "sun", "to", "cup;", "100%", "of", "it", "is", "spent", "waiting,", "as", "any", '"profiler"',
        "would", "tell", "you", "✓\n", "Then",
    )
)  # fmt: skip
VARIANT: Final = "~variant"  # stands for that part of the first word; variants have its length
VARIANT_BYTES: Final = VARIANT.encode()
CREATED: Final = 1_750_000_000  # the simulated model's replies all say so; wall time is in the log


def text_of(count: int, start: int = 0) -> str:
    """The text of `count` tokens from the `start`-th on, the first one with the placeholder VARIANT."""
    words = [WORDS[index % len(WORDS)] for index in range(start, start + count)]
    if words and not start:
        words[0] += VARIANT
    return "".join(words)


class Invalid(Exception):
    """The request's body is not what the API asks for; answered with 400."""


class Ask(NamedTuple):
    """What a request asks for, in no API's form."""

    model: str
    prompt_tokens: int
    max_tokens: int | None = None
    stream: bool = False
    usage: bool = True  # the API reports usage, or was asked to


class Outline(NamedTuple):
    """What a reply will say. Hashable: equal outlines share their rendering."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    reasoning: int  # tokens
    visible: int  # tokens
    finish: str  # stop | length | filter | none
    usage: str  # none | apart | in_finish
    role_chunk: bool
    per_event: int  # tokens an event carries
    newline: bytes
    usage_factor: float = 1.0

    @property
    def output_tokens(self) -> int:
        """What the usage says."""
        sent = self.reasoning + self.visible
        return max(min(sent, 1), round(sent * self.usage_factor))


class Token(NamedTuple):
    """One event's worth of tokens."""

    number: int  # of the token event in the reply, from 0
    text: str
    reasoning: bool
    first: bool  # of its kind
    so_far: int  # output tokens including these


class Route(NamedTuple):
    """A path with its variables and query."""

    path: str
    query: str
    model: str = ""
    stream: bool = False


class Provider(Protocol):
    """One API. Stateless; one object serves all requests."""

    name: str
    framing: str  # of a stream, a key of framing.FRAMINGS
    crlf: bool  # the API's own line ends
    id_header: str

    def ask(self, body: bytes, route: Route) -> Ask:
        """What the request asks for. Raises Invalid."""

    def opening(self, outline: Outline) -> Sequence[Part]:
        """What comes before the first token."""

    def token(self, outline: Outline, token: Token) -> Sequence[Part]:
        """What carries a token, and what must stand before it. Depends on outline.model, reasoning, role_chunk only."""

    def closing(self, outline: Outline) -> Sequence[Part]:
        """What comes after the last token: finish reason, usage, terminal marker."""

    def ping(self) -> Part:
        """What keeps a connection alive while nothing is to be said."""

    def failure(self, message: str) -> Event:
        """An error in the middle of a stream."""

    def complete(self, outline: Outline) -> dict[str, Any]:
        """The reply in one JSON object."""

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        """The body of an HTTP error."""


def words_in(content: Any) -> int:
    """Prompt tokens of a message's content: its words. Content is text, a list of parts with `text`, or nothing."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        return sum(words_in(part.get("text") if isinstance(part, dict) else part) for part in content)
    return 0


def decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """The typed body. Raises Invalid with the decoder's words."""
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise Invalid(str(error)) from error
