"""One file per API: how a request to it is read and how the events of its reply look; `route()` finds the one for a path.

Sans-IO, and stateless: one object serves all requests. `provider.py` has the Protocol and what all of them share;
the names of their methods are those of `Provider`.
"""

from __future__ import annotations

import re
from typing import Final

from .anthropic import Anthropic
from .cohere import Cohere
from .generic import Ollama, Plain, Tgi
from .google import Google, GoogleArray
from .openai_chat import AzureChat, OpenAIChat
from .openai_completions import OpenAICompletions
from .openai_responses import OpenAIResponses
from .provider import Provider, Route

CHAT: Final = OpenAIChat()
COMPLETIONS: Final = OpenAICompletions()
RESPONSES: Final = OpenAIResponses()
AZURE: Final = AzureChat()
GOOGLE: Final = Google()
GOOGLE_ARRAY: Final = GoogleArray()
TGI: Final = Tgi()

EXACT: Final[dict[str, Provider]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/openai/v1/chat/completions": CHAT,
    "/openai/v1/completions": COMPLETIONS,
    "/openai/v1/responses": RESPONSES,
    "/v1/messages": Anthropic(),
    "/v2/chat": Cohere(),
    "/api/chat": Ollama(),
    "/plain": Plain(),
    "/generate": TGI,
    "/generate_stream": TGI,
}
_DEPLOYMENT: Final = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|completions)")
# The Gemini API and Vertex AI differ only in what stands before /models/.
_GENERATE: Final = re.compile(r"/v1(?:beta\d*|alpha)?/(?:.+/)?models/([^/:]+):(streamGenerateContent|generateContent)")


def route(path: str, query: str) -> tuple[Provider, Route] | None:
    """The provider of a path and the variables in it, or None where there is none."""
    provider = EXACT.get(path)
    if provider:
        return provider, Route(path, query, stream=path == "/generate_stream")
    if found := _DEPLOYMENT.fullmatch(path):
        return (AZURE if found[2].startswith("chat") else COMPLETIONS), Route(path, query, model=found[1])
    if found := _GENERATE.fullmatch(path):
        stream = found[2] == "streamGenerateContent"
        provider = GOOGLE_ARRAY if stream and "alt=sse" not in query.split("&") else GOOGLE
        return provider, Route(path, query, model=found[1], stream=stream)
    return None
