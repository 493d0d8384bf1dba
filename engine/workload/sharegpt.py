"""ShareGPT conversations: one prompt each, the first human turn, and a limit as long as the reply it got.

As in vLLM's benchmark, conversations without a human turn and its reply are passed over, and so are empty ones; the
later turns are not asked. A file is one JSON array (any size, cut as it is read) or one conversation a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import Workload
from .ask import Ask
from .index import Dataset, Raw, Scan, open_records
from .text import Prose

_HUMAN: Final = frozenset({"human", "user"})
_MODEL: Final = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model"})


class ShareGpt:
    """The prompts of a ShareGPT file."""

    def __init__(self, workload: Workload, seed: int, prose: Prose) -> None:
        self._records = open_records(workload.path, "workload.path")
        self._prose = prose
        if next(self._usable(self._records.scan()), None) is None:
            raise PlanError(f"{workload.path} holds no conversation with a human turn and its reply (workload.path)")
        self._dataset = Dataset(self._records, workload.order, seed, self._usable(self._records.scan()))

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        for slot, offset, raw in self._dataset.select(worker, workers, first, phase):
            if (exchange := self._exchange(offset, raw)) is None:
                continue  # never: the dataset holds usable ones only
            human, reply = exchange
            yield Ask(slot, Prompt(({"role": "user", "content": human},), None, self._tokens(reply)))

    def _usable(self, records: Scan) -> Scan:
        return (record for record in records if self._exchange(*record) is not None)

    def _tokens(self, reply: str) -> int:
        return max(self._prose.count(reply) if self._prose.count else self._prose.estimate(len(reply)), 1)

    def _exchange(self, offset: int, raw: Raw) -> tuple[str, str] | None:
        """The first human turn and the reply to it, None if the conversation does not begin with them."""
        try:
            columns = self._records.columns(raw)
            turns = columns.get("conversations", columns.get("conversation"))
            if not isinstance(turns, list):
                raise ValueError(f"no conversations, the columns are: {', '.join(columns)}")
            said = [_turn(turn) for turn in turns[:3]]
        except ValueError as error:
            raise PlanError(f"{self._records.file.where(offset)}: {error}") from error
        if said and said[0][0] == "system":
            del said[0]
        if len(said) < 2 or said[0][0] not in _HUMAN or said[1][0] not in _MODEL:
            return None
        human, reply = said[0][1], said[1][1]
        return (human, reply) if human.strip() and reply.strip() else None


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise ValueError(f"a turn must be an object with from and value, got {turn!r}")
    speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    return (speaker, text) if isinstance(speaker, str) and isinstance(text, str) else ("", "")
