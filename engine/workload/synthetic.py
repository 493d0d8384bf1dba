"""Made-up prompts with lengths drawn per slot."""

from __future__ import annotations

from collections.abc import Iterator

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import Workload
from .ask import Ask
from .deck import slots
from .draw import key_of, lengths, mix
from .text import Prose


class Synthetic:
    """One prompt a slot, of `input_tokens` tokens of user text; no two slots of a phase begin alike."""

    def __init__(self, workload: Workload, seed: int, prose: Prose) -> None:
        if workload.input_tokens is None:
            raise PlanError("synthetic prompts need a length (workload.input_tokens)")
        self._length = lengths(workload.input_tokens, "workload.input_tokens")
        self._prose = prose
        self._seed = seed

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        length, text = self._length, self._prose.text
        length_key, text_key = key_of(self._seed, phase, "input"), key_of(self._seed, phase, "text")
        for slot in slots(worker, workers, first):
            tokens = length(mix(length_key ^ slot))
            prompt = Prompt(({"role": "user", "content": text(text_key ^ slot, tokens)},))
            yield Ask(slot, prompt, tokens)
