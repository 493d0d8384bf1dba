"""What a reply that is not a success means: HTTP status and error body to Outcome and a message for people."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..records.record import FINISH_LENGTH, FINISH_OTHER, FINISH_STOP, UNKNOWN, Outcome
from .loose import micros

MESSAGE_CHARACTERS: Final = 300
MASK: Final = "***"
DEPTH: Final = 8  # a message is never deeper inside an error
KEPT: Final = frozenset(
    {b"x-request-id", b"request-id", b"apim-request-id", b"x-debug-trace-id", b"retry-after", b"retry-after-ms"}
    | {b"openai-processing-ms"}
)
# Who took how long until the reply began, in whole ms: the provider itself, or its own proxy of the server behind it.
PROCESSING: Final = (b"openai-processing-ms", b"x-envoy-upstream-service-time")
KEPT_PREFIXES: Final = (b"x-ratelimit-", b"anthropic-ratelimit-")
KEPT_FIRST: Final = frozenset(name[0] for name in (*KEPT, *KEPT_PREFIXES))

_BY_STATUS: Final = {
    400: Outcome.HTTP_INVALID,
    401: Outcome.HTTP_AUTH,
    403: Outcome.HTTP_AUTH,
    404: Outcome.HTTP_INVALID,
    413: Outcome.HTTP_INVALID,
    422: Outcome.HTTP_INVALID,
    429: Outcome.HTTP_RATE_LIMITED,
    503: Outcome.HTTP_OVERLOADED,
    529: Outcome.HTTP_OVERLOADED,
}
_FILTERED: Final = ("content_filter", "content_policy_violation")  # Azure, OpenAI: the prompt was filtered
_BAD_KEY: Final = b'"API_KEY_INVALID"'  # Google: the key is wrong

# The APIs' own words for the two usual ends, in lower case.
_FINISHES: Final = dict.fromkeys(
    ("stop", "end_turn", "stop_sequence", "complete", "completed", "eos_token", "eos"), FINISH_STOP
) | dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), FINISH_LENGTH)


def finish_flag(finish: str) -> int:
    """The record's flag for a reply's finish reason, given in the provider's own word."""
    return _FINISHES.get(finish) or _FINISHES.get(finish.lower(), FINISH_OTHER)


def outcome_of(status: int) -> Outcome:
    """The outcome of an HTTP status that is not 2xx (METRICS: Outcomes)."""
    return _BY_STATUS.get(status, Outcome.HTTP_SERVER if 500 <= status < 600 else Outcome.HTTP_OTHER)


def refusal(status: int, body: bytes, secrets: tuple[str, ...] = ()) -> tuple[Outcome, str]:
    """Outcome and message of a reply that is not 2xx; no secret survives in the message."""
    text = error_text(body)
    outcome = outcome_of(status)
    if status == 400:  # two refusals that say 400 and mean something else
        if _code(body) in _FILTERED:
            outcome = Outcome.CONTENT_FILTERED
        elif _BAD_KEY in body:
            outcome = Outcome.HTTP_AUTH
    return outcome, masked_text(f"HTTP {status}: {text}" if text else f"HTTP {status}", secrets)


class _Error(msgspec.Struct):
    code: str | int | None = None


class _Refusal(msgspec.Struct):
    error: _Error | None = None


def _code(body: bytes) -> str | int | None:
    """`error.code` of an error body; None where there is none."""
    try:
        refused = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return refused.error.code if refused.error else None


def masked_text(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with every secret masked, then cut to what a message may have."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return text[:MESSAGE_CHARACTERS]


def error_text(body: bytes) -> str:
    """The message in an error body of any of the APIs; plain text as it is."""
    try:
        found = message_in(msgspec.json.decode(body))
    except (msgspec.DecodeError, ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        found = None
    text = found if found is not None else body[: 4 * MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return " ".join(text.split())[: 4 * MESSAGE_CHARACTERS]  # cut to size after secrets are masked, never through one


def message_in(value: Any, depth: int = DEPTH) -> str | None:
    """The human message inside a decoded error: {"error": {"message"}}, {"error": "..."}, {"message"}, [{"error"}]."""
    if not depth:
        return None
    if isinstance(value, list) and value:
        return message_in(value[0], depth - 1)
    if not isinstance(value, dict):
        return None
    for key in ("error", "message", "detail", "msg"):
        inner = value.get(key)
        if isinstance(inner, str):
            return inner
        if inner is not None and (found := message_in(inner, depth - 1)):
            return found
    return None


def kept_headers(headers: dict[bytes, bytes]) -> dict[str, str]:
    """The reply headers (names in lower case) worth a place in the record's detail: request id, rate limits, hints."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        if name[0] in KEPT_FIRST and (name in KEPT or name.startswith(KEPT_PREFIXES)):
            kept[name.decode("latin-1")] = value[:80].decode("latin-1")
    return kept


def provider_us(headers: dict[bytes, bytes]) -> int:
    """How long the provider says that it took until its reply began, by its headers; UNKNOWN where they do not say."""
    for name in PROCESSING:
        if name in headers:
            try:
                return micros(float(headers[name]))
            except ValueError:
                continue
    return UNKNOWN
