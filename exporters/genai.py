"""How a target is named by OpenTelemetry's GenAI conventions. Pure.

https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# Dialect -> gen_ai.operation.name, gen_ai.provider.name: their well-known values. A server that speaks OpenAI's API has
# its format, whoever runs it.
_NAMES: Final = {
    "openai": ("chat", "openai"),
    "openai-completions": ("text_completion", "openai"),
    "openai-responses": ("chat", "openai"),
    "azure-openai": ("chat", "azure.ai.openai"),
    "anthropic": ("chat", "anthropic"),
    "google": ("generate_content", "gcp.gemini"),
    "cohere": ("chat", "cohere"),
}

Models = Mapping[str, tuple[str, str]]  # target -> our name of its provider, model


class GenAi(NamedTuple):
    """Values of `gen_ai.operation.name`, `gen_ai.provider.name` and `gen_ai.request.model`."""

    operation: str
    provider: str
    model: str

    @property
    def attributes(self) -> dict[str, str]:
        """By their OpenTelemetry name."""
        return dict(zip(ATTRIBUTES, self, strict=True))


ATTRIBUTES: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
LABELS: Final = tuple(name.replace(".", "_") for name in ATTRIBUTES)  # of Prometheus


def genai_of(target: str, models: Models) -> GenAi:
    """What is known of the target; a dialect of its own keeps its name as provider."""
    provider, model = models.get(target, ("", ""))
    return GenAi(*_NAMES.get(provider, ("chat", provider)), model)
