"""The retry law: whether a failed attempt is tried again, and after how long. Pure; clock and chance are passed in.

Tried again: no connection, and HTTP 408, 409, 429 and 5xx before the first token. Never after the first token, which
would be a second answer to one question, and never a timeout or a broken stream: the provider may still be at work.

The wait is the server's `retry-after-ms` or `Retry-After` (RFC 9110 10.2.3: seconds or a date) as it stands, also
beyond `backoff_max_ns`: to ask again sooner than the server said only gathers more refusals. Beyond the time limit of
a request there is no other attempt. Without one it is
backoff * factor ** (attempt - 1), at most `backoff_max_ns`, shortened by up to `jitter` of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from random import Random
from typing import Final, Protocol

from ..plan.plan import SECOND, Retry
from ..records.record import Outcome

STATUSES: Final = frozenset({408, 409, 429})
CONNECT: Final = frozenset(
    {
        Outcome.CONNECT_DNS,
        Outcome.CONNECT_REFUSED,
        Outcome.CONNECT_TIMEOUT,
        Outcome.CONNECT_TLS,
        Outcome.CONNECT_RESET,
    }
)
HTTP: Final = frozenset(
    {
        Outcome.HTTP_RATE_LIMITED,
        Outcome.HTTP_OVERLOADED,
        Outcome.HTTP_SERVER,
        Outcome.HTTP_OTHER,
    }
)
DAY_NS: Final = 86_400 * SECOND  # no server asks to wait for longer than this; a larger number is a broken server


class Attempt(Protocol):
    """What the law asks of an attempt that failed: engine.exchange.Exchange."""

    outcome: Outcome
    http_status: int
    first_token_ns: int
    attempts: int
    kept_headers: dict[str, str]


def retry_delay_ns(retry: Retry, exchange: Attempt, wall_ns: int, rng: Random, *, longest_ns: int) -> int | None:
    """How long to wait before the next attempt, None for no other. `wall_ns` is CLOCK_REALTIME, for dates.

    A server that asks for more than `longest_ns` is not asked again: one `Retry-After` of a day would hold a slot of
    a closed loop for a day."""
    if exchange.attempts >= retry.attempts or exchange.first_token_ns or not worth_another(exchange):
        return None
    if retry.respect_retry_after:
        asked_ns = retry_after_ns(exchange.kept_headers, wall_ns)
        if asked_ns is not None:
            return asked_ns if asked_ns <= longest_ns else None
    return backoff_ns(retry, exchange.attempts, rng)


def worth_another(exchange: Attempt) -> bool:
    """Is this a failure that may be gone the next time?"""
    if exchange.outcome in CONNECT:
        return True
    status = exchange.http_status
    return exchange.outcome in HTTP and (status in STATUSES or 500 <= status < 600)


def backoff_ns(retry: Retry, attempt: int, rng: Random) -> int:
    """The wait after attempt number `attempt` (from 1) where the server says nothing."""
    try:
        wait = min(retry.backoff_ns * retry.factor ** (attempt - 1), float(retry.backoff_max_ns))
    except OverflowError:  # of factor ** attempt, after some hundred attempts
        wait = float(retry.backoff_max_ns)
    return round(wait * (1.0 - retry.jitter * rng.random()))


def retry_after_ns(headers: Mapping[str, str], wall_ns: int) -> int | None:
    """The wait the server asks for; a time that is past is 0, what cannot be understood is None."""
    for name, unit_ns in (("retry-after-ms", 1_000_000), ("retry-after", SECOND)):
        text = headers.get(name, "").strip()
        if text:
            asked_ns = _number_ns(text, unit_ns) if _is_number(text) else _date_ns(text, wall_ns)
            if asked_ns is not None:
                return asked_ns
    return None


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _number_ns(text: str, unit_ns: int) -> int | None:
    value = float(text)  # Retry-After is whole seconds by the RFC; some providers send fractions
    return min(round(value * unit_ns), DAY_NS) if value >= 0 else None


def _date_ns(text: str, wall_ns: int) -> int | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max(round(at.timestamp()) * SECOND - wall_ns, 0), DAY_NS)
