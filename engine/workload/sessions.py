"""Conversations of several turns: each turn holds the replies that really came, and waits as long as its user thinks.

    {"id"?, "system"?, "turns": [{"user": "...", "think_s"?: 1.5, "max_tokens"?: 64}, ...]}
    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}, ...]}   assistant messages are placeholders
    {"conversations": [{"from": "human", "value": ...}, ...]}                ShareGPT, likewise

`think_s` is the time between the end of the reply before and this turn. One record a line, or one JSON array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, Final

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import SECOND, Workload
from .ask import Ask, Turn
from .index import Dataset, Raw, checked, open_records
from .rows import CHECKED, SMALL_BYTES, conversation, limit_of

_ROLES: Final = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Session:
    """One user's conversation. One request of it is in flight at most: ask for the next turn when a reply is complete."""

    __slots__ = ("_estimate", "_prompt", "_turns", "estimate_tokens", "id", "turn")

    def __init__(self, id: int, prompt: Prompt, turns: tuple[Turn, ...], estimate: Callable[[Prompt], int]) -> None:
        self.id = id  # the slot that it began with
        self.turn = 0  # of the request that is asked now
        self.estimate_tokens = estimate(prompt)  # of this turn's prompt, history included, and its reply
        self._prompt = prompt
        self._turns = turns
        self._estimate = estimate

    def next(self, reply_text: str) -> tuple[int, Prompt] | None:
        """Takes the reply to the last turn; (think time in ns, the next prompt), None after the last turn.

        An empty reply (all reasoning, or a tool call) leaves no message: APIs refuse empty ones.
        """
        if self.turn >= len(self._turns):
            return None
        turn = self._turns[self.turn]
        self.turn += 1
        said = ({"role": "assistant", "content": reply_text},) if reply_text else ()
        messages = (*self._prompt.messages, *said, {"role": "user", "content": turn.text})
        self._prompt = self._prompt._replace(messages=messages, max_tokens=turn.max_tokens)
        self.estimate_tokens = self._estimate(self._prompt)
        return turn.think_ns, self._prompt


class Sessions:
    """The conversations of a file. A file shorter than the run begins again, with new sessions."""

    def __init__(
        self, workload: Workload, seed: int, *, small_bytes: int = SMALL_BYTES, checked_rows: int = CHECKED
    ) -> None:
        self._records = open_records(workload.path, "workload.path")
        self._think_ns = workload.think_time_ns
        if not sum(1 for _ in checked(self._records, self._read, small_bytes, checked_rows)):
            raise PlanError(f"{workload.path} holds no sessions (workload.path)")
        self._dataset = Dataset(self._records, workload.order, seed)

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        for slot, offset, raw in self._dataset.select(worker, workers, first, phase):
            prompt, turns = self._read(offset, raw)
            yield Ask(slot, prompt, None, turns)

    def _read(self, offset: int, raw: Raw) -> tuple[Prompt, tuple[Turn, ...]]:
        try:
            columns = self._records.columns(raw)
            system, turns = turns_of(columns)
        except ValueError as error:
            raise PlanError(f"{self._records.file.where(offset)}: {error}") from error
        if self._think_ns is not None:
            turns = [turn._replace(think_ns=self._think_ns) for turn in turns]
        first, *later = turns
        message = {"role": "user", "content": first.text}
        return Prompt((message,), system, first.max_tokens, columns), tuple(later)


def turns_of(columns: dict[str, Any]) -> tuple[str | None, list[Turn]]:
    """(system prompt, the user's turns, at least one) of a record. Raises ValueError."""
    limit = limit_of(columns, "max_tokens", "output_tokens")
    system = columns.get("system") or None
    if system is not None and not isinstance(system, str):
        raise ValueError("system must be text")
    if "turns" in columns:
        turns = columns["turns"]
        if not isinstance(turns, list) or not turns:
            raise ValueError("turns must be a list of at least one")
        return system, [_turn(number, turn, limit) for number, turn in enumerate(turns)]
    if "conversations" in columns:
        leading, messages = conversation(_messages(columns["conversations"]))
    elif "messages" in columns:
        leading, messages = conversation(columns["messages"])
    else:
        raise ValueError(f"no turns, messages or conversations, the columns are: {', '.join(columns)}")
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise ValueError(f"messages must alternate, user first: number {number} is from the {message['role']}")
    return system or leading, [Turn(message["content"], 0, limit) for message in messages[::2]]


def _messages(said: Any) -> list[dict[str, Any]]:
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError("conversations must be a list of objects")
    return [{"role": _ROLES.get(turn.get("from", ""), "?"), "content": turn.get("value")} for turn in said]


def _turn(number: int, turn: Any, limit: int | None) -> Turn:
    if isinstance(turn, str):
        turn = {"user": turn}
    text = turn.get("user") if isinstance(turn, dict) else None
    if not isinstance(text, str) or not text:
        raise ValueError(f"turns[{number}] must have the user's text as user")
    think_s = turn.get("think_s") or 0
    if isinstance(think_s, bool) or not isinstance(think_s, int | float) or not isfinite(think_s) or think_s < 0:
        raise ValueError(f"turns[{number}].think_s must be seconds >= 0, got {think_s!r}")
    return Turn(text, round(think_s * SECOND), limit_of(turn, "max_tokens", "output_tokens") or limit)
