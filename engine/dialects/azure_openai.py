"""Azure OpenAI: chat completions under a deployment's path, the key in a header of its own.

POST {base}/openai/deployments/{model}/chat/completions?api-version=..., or {base}/chat/completions where the base URL
ends in /openai/v1. The stream may begin with a chunk of prompt filter results, which has no choices and is no token.
https://learn.microsoft.com/azure/ai-foundry/openai/reference
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from ..plan.plan import Target
from . import HttpRequest, Prompt, Reply
from .content import headers_of, keyed
from .openai import ChatReply, chat_body

API_VERSION: Final = "2024-10-21"  # the last dated one that is no preview


class AzureOpenAI:
    """The `azure-openai` dialect."""

    name = "azure-openai"
    default_base_url: str | None = None
    key_variable: str | None = "AZURE_OPENAI_API_KEY"
    asks = "POST {base}/openai/deployments/{model}/chat/completions"
    measures = "text, reasoning, tool calls, usage with cached and reasoning tokens, content filters"
    limits = "model is the deployment's name; api_version is 2024-10-21 unless given; Entra tokens go in headers"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        base = target.base_url.rstrip("/")
        if base.endswith("/openai/v1"):
            query = f"?api-version={quote(target.api_version)}" if target.api_version else ""
            url = f"{base}/chat/completions{query}"
        else:
            deployment = quote(target.model, safe="")
            version = quote(target.api_version or API_VERSION)
            place = f"{base.removesuffix('/openai')}/openai/deployments/{deployment}"
            url = f"{place}/chat/completions?api-version={version}"
        return HttpRequest(
            "POST",
            url,
            headers_of(target, *keyed(target, "api-key")),
            chat_body(target, prompt, "max_completion_tokens"),
        )

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return ChatReply(keep_text)
