"""Replies beside each other: does the server say the same to different prompts, and were its prompts asked before?

Workers send two checksums with each reply: of the request's body, and of the beginning of the reply's text (engine
dialects, Reply). Two replies are equal if both begin alike, have as many tokens and were asked for as many. Short ones
are not compared: "Yes." is an honest answer to many prompts. The checksums that were seen are not in the checkpoint:
after a restart of the collector the comparison begins anew, the counts stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ..engine.plan.plan import Phase
from ..engine.records.detail import Detail
from ..engine.records.record import IDENTICAL_REPLY, REPEATED_PROMPT, REPLY_COMPARED, UNKNOWN, Outcome
from .measures import Records

COMPARED_TOKENS: Final = 16  # the fewest output tokens of a reply that is compared
REPLIES_KEPT: Final = 16_384  # 2 MB; later ones are only looked up
PROMPTS_KEPT: Final = 65_536


class ReplyComparison:
    """Marks the records of a run's replies, in the order in which they are read."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._measured = [phase.measure for phase in phases]
        self._warmed_up: set[int] = set()  # prompts of phases that are not measured
        self._replies: dict[tuple[int, int, int, int], int] = {}  # what makes replies equal: the first one's prompt

    def mark(self, records: Records, details: Mapping[tuple[int, int], Detail]) -> None:
        """Sets REPLY_COMPARED, IDENTICAL_REPLY and REPEATED_PROMPT in the flags of these records."""
        for i in np.flatnonzero(records["outcome"] == Outcome.OK).tolist():
            row = records[i]
            phase = int(row["phase"])
            detail = details.get((phase, int(row["request"])))
            if detail is None or not detail.reply_crc:
                continue
            flags = self._prompt(detail.prompt_crc, self._measured[phase])
            said = int(row["output_tokens"])
            tokens = int(row["token_events"]) if said == UNKNOWN else said
            if tokens >= COMPARED_TOKENS:
                key = (int(row["target"]), detail.reply_crc, tokens, int(row["asked_output_tokens"]))
                flags |= REPLY_COMPARED | self._reply(key, detail.prompt_crc)
            records["flags"][i] |= flags

    def _prompt(self, prompt: int, measured: bool) -> int:
        if measured:
            return REPEATED_PROMPT if prompt in self._warmed_up else 0
        if len(self._warmed_up) < PROMPTS_KEPT:
            self._warmed_up.add(prompt)
        return 0

    def _reply(self, key: tuple[int, int, int, int], prompt: int) -> int:
        first = self._replies.get(key)
        if first is None:
            if len(self._replies) < REPLIES_KEPT:
                self._replies[key] = prompt
            return 0
        return IDENTICAL_REPLY if first != prompt else 0
