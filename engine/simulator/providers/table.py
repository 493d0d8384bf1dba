"""Which provider answers which path."""

from __future__ import annotations

from typing import Final

from llm_latency_lens.engine.simulator.providers import Provider, Route
from llm_latency_lens.engine.simulator.providers.openai_chat import OpenAIChat

CHAT: Final = OpenAIChat()
EXACT: Final[dict[str, Provider]] = {
    "/v1/chat/completions": CHAT,
}


def route(path: str, query: str) -> tuple[Provider, Route] | None:
    """The provider of a path and the variables in it, or None where there is none."""
    provider = EXACT.get(path)
    return (provider, Route(path, query)) if provider else None
