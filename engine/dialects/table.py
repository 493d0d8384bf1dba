"""All dialects by name, and how a reply's body is cut into events."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from llm_latency_lens.engine.dialects import Dialect, Reply
from llm_latency_lens.engine.dialects.anthropic import Anthropic
from llm_latency_lens.engine.dialects.azure_openai import AzureOpenAI
from llm_latency_lens.engine.dialects.cohere import Cohere
from llm_latency_lens.engine.dialects.google import Google
from llm_latency_lens.engine.dialects.http import Http
from llm_latency_lens.engine.dialects.openai import OpenAIChat
from llm_latency_lens.engine.dialects.openai_completions import OpenAICompletions
from llm_latency_lens.engine.dialects.openai_responses import OpenAIResponses

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


def framing_for(reply: Reply, content_type: str) -> str:
    """The framing of a streamed reply; `none` when the server answered a request for a stream with one whole body."""
    if reply.framing == "sse" and _is_json(content_type):
        return reply.json_framing
    return reply.framing


@lru_cache(maxsize=64)  # a server has one or two
def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"
