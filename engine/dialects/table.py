"""All dialects by name, those of other packages too, and how a reply's body is cut into events."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ..installed import plugin_names
from . import Dialect, Reply
from .anthropic import Anthropic
from .azure_openai import AzureOpenAI
from .cohere import Cohere
from .google import Google
from .http import Http
from .openai import OpenAIChat
from .openai_completions import OpenAICompletions
from .openai_responses import OpenAIResponses
from .plugged import plugged_dialect

ALL: Final[tuple[Dialect, ...]] = (
    OpenAIChat(),
    OpenAICompletions(),
    OpenAIResponses(),
    AzureOpenAI(),
    Anthropic(),
    Google(),
    Cohere(),
    Http(),
)
DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in ALL}


def dialect_of(name: str) -> Dialect:
    """The dialect of that name, ours or an installed package's. Raises PlanError."""
    return DIALECTS.get(name) or plugged_dialect(name)


def dialect_names() -> list[str]:
    """Ours, and those of installed packages that have names of their own."""
    return list(dict.fromkeys([*DIALECTS, *plugin_names("dialect")]))


def framing_for(reply: Reply, content_type: str) -> str:
    """The framing of a streamed reply; `none` when the server answered a request for a stream with one complete body."""
    if reply.framing == "sse" and _is_json(content_type):
        return reply.json_framing
    return reply.framing


@lru_cache(maxsize=64)  # a server has one or two
def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"
