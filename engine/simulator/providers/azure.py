"""Azure OpenAI: OpenAI's bodies under a deployment's path, first a chunk of prompt filter results."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs

from ..framing import Event, Part
from . import CREATED, Ask, Invalid, Outline, Route
from .openai_chat import OpenAIChat

SAFE: Final = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}


class AzureChat(OpenAIChat):
    name = "azure-openai"

    def ask(self, body: bytes, route: Route) -> Ask:
        if "api-version" not in parse_qs(route.query):
            raise Invalid("Missing required query parameter: api-version")
        return super().ask(body, route)

    def opening(self, outline: Outline) -> list[Part]:
        results = [{"prompt_index": 0, "content_filter_results": SAFE}]
        # Has neither a choice nor an id: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-streaming
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": results}
        return [Event(first), *super().opening(outline)]

    def whole(self, outline: Outline) -> dict[str, Any]:
        reply = super().whole(outline)
        reply["choices"][0]["content_filter_results"] = SAFE
        results = [{"prompt_index": 0, "content_filter_results": SAFE}]
        return reply | {"created": CREATED, "prompt_filter_results": results}

    def refusal(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"code": str(status), "message": message}}
