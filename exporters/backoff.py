"""How long to wait before the next attempt at something that failed. Pure but for the dice."""

from __future__ import annotations

import random


def backoff_s(attempt: int, *, first_s: float = 0.5, most_s: float = 30.0) -> float:
    """Seconds before attempt `attempt` + 1 (the first failure is 1): doubling from `first_s` to `most_s`, with jitter
    in the upper half so that many lenses do not come back at the same moment."""
    return min(most_s, first_s * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)
