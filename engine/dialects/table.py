"""All dialects by name, and how a reply's body is cut into events."""

from __future__ import annotations

from typing import Final

from llm_latency_lens.engine.dialects import Dialect, Reply
from llm_latency_lens.engine.dialects.openai import OpenAIChat

DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in (OpenAIChat(),)}


def framing_for(reply: Reply, content_type: str) -> str:
    """The framing of a streamed reply; `none` when the server answered a request for a stream with one whole body."""
    kind = content_type.partition(";")[0].strip().lower()
    if reply.framing == "sse" and kind == "application/json":
        return "none"
    return reply.framing
