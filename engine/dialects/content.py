"""Prompts on their way into an API's own form: the messages' text and pictures, and the headers of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ..plan.plan import Target
from . import Prompt

JSON: Final = ("Content-Type", "application/json")


class Image(NamedTuple):
    """A picture in a message: `base64` of a data URL with its media type, or a URL that the provider fetches."""

    url: str
    media_type: str = ""
    base64: str = ""


def parts_of(content: Any) -> Iterator[str | Image | dict[str, Any]]:
    """A message's content piece by piece: text, pictures, and as they are the parts that are neither."""
    if isinstance(content, str):
        yield content
        return
    for part in content or ():
        if isinstance(part, str):
            yield part
        elif part.get("type") == "text":
            yield part.get("text", "")
        elif part.get("type") == "image_url":
            yield _image(part["image_url"])
        else:
            yield part


def text_of(content: Any) -> str:
    """The text of a message's content, pictures left out."""
    return "\n".join(part for part in parts_of(content) if isinstance(part, str))


def flattened(prompt: Prompt, system: str | None = None) -> str:
    """The complete conversation as one text, for APIs that know no messages."""
    texts = [text_of(message.get("content")) for message in prompt.messages]
    return "\n\n".join([system, *texts] if system else texts)


def headers_of(target: Target, *ours: tuple[str, str]) -> list[tuple[str, str]]:
    """Content type, what is accepted, `ours`, then the plan's own headers, which replace any of the same name."""
    accept = ("Accept", "text/event-stream" if target.stream else "application/json")
    own = [(name, value if isinstance(value, str) else value.value) for name, value in target.headers.items()]
    replaced = {name.lower() for name, _ in own}
    return [pair for pair in (JSON, accept, *ours) if pair[0].lower() not in replaced] + own


def bearer(target: Target) -> tuple[tuple[str, str], ...]:
    """The key as a Bearer token."""
    return () if target.api_key is None else (("Authorization", f"Bearer {target.api_key.value}"),)


def keyed(target: Target, name: str) -> tuple[tuple[str, str], ...]:
    """The key in a header of its own."""
    return () if target.api_key is None else ((name, target.api_key.value),)


def _image(given: Any) -> Image:
    url = given if isinstance(given, str) else given.get("url", "")
    head, comma, encoded = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        return Image(url, head.removeprefix("data:").partition(";")[0], encoded)
    return Image(url)
