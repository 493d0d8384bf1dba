"""What a workload file or generator asks for one slot, before target, prefix and token limits are added."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple, Protocol

from ..dialects import Prompt


class Turn(NamedTuple):
    """What a user says after a reply, and how long after it."""

    text: str
    think_ns: int
    max_tokens: int | None


class Ask(NamedTuple):
    """One slot's prompt. `tokens` of the prompt where its maker knows them; `turns` that follow, for a session."""

    slot: int
    prompt: Prompt
    tokens: int | None = None
    turns: tuple[Turn, ...] | None = None


class Asks(Protocol):
    """One kind of workload."""

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        """One Ask for each slot worker, worker + workers, ... that is >= first. Never ends, in constant memory."""


def slots(worker: int, workers: int, first: int) -> Iterator[int]:
    """The slots of one worker from `first` on, without end."""
    return count(first + (worker - first) % workers, workers)
