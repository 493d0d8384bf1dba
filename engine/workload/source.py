"""From what a workload asks to complete items: target by weight, prefix, token limits, estimate for token buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, Final, NamedTuple

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import Plan, Target, Workload
from .ask import Ask, Asks, Turn, slots
from .draw import Draw, Shares, key_of, lengths, mix
from .plugged import PluggedAsks
from .prefix import prefix_of, prefixed
from .rows import Rows
from .sessions import Session, Sessions
from .sharegpt import ShareGpt
from .text import Prose
from .tokenizer import tokenizer_of
from .trace import Trace

OUTPUT_TOKENS: Final = 256  # of a reply that nothing limits, for the estimate only
IMAGE_TOKENS: Final = 1000  # of an image, for the estimate only: between 85 and ~1600 by provider and detail
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens", "num_predict")
_TURN_SHIFT: Final = 40


class Item(NamedTuple):
    """What one slot asks of which target (index into the plan's)."""

    prompt: Prompt
    target: int
    estimate_tokens: int  # of prompt and reply, for tokens-per-minute limits
    session: Session | None = None
    asked_tokens: int = 0  # of the prompt, where the workload asks for a length


class _Phase(NamedTuple):
    """What the items of one phase have in common."""

    output_key: int
    prefix: Callable[[int], str] | None
    prefix_tokens: int


class Source:
    """The workload of a plan. Iterators are independent of each other; each is at its own record of the file."""

    def __init__(self, plan: Plan, seed: int) -> None:
        workload = plan.workload
        self.workload = workload
        self.targets = plan.targets
        tokenizer = tokenizer_of(workload.tokenizer) if workload.tokenizer else None
        salt = 0 if workload.salt == "none" else key_of("salt", workload.salt)
        self.prose = Prose(tokenizer, workload.calibration, salt)
        self._seed = seed
        self._target_of = Shares([target.weight for target in plan.targets], key_of(seed, "mix"))
        self._asks = _KINDS[workload.kind](workload, seed, self.prose)
        self._prefix = prefix_of(workload, seed, self.prose)
        self._joint = " " if workload.kind in ("synthetic", "trace") else "\n\n"
        self._output: Draw | None = None
        if workload.output_tokens is not None:
            self._output = lengths(workload.output_tokens, "workload.output_tokens")
        self._replies = [_reply_tokens(target) for target in plan.targets]

    def items(self, worker: int, workers: int, first: int = 0, *, phase: int = 0) -> Iterator[Item]:
        """One item for each slot worker, worker + workers, ... that is >= first. Never ends.

        Every phase begins the file anew, but made-up prompts and unique prefixes differ between phases, so that a
        warm-up leaves nothing in a server's prefix cache. Raises PlanError where a row turns out bad.
        """
        if not 0 <= worker < workers or first < 0:
            raise ValueError(f"worker {worker} of {workers}, first {first}")
        if isinstance(self._asks, Single) and self._varies_not():
            return self._same(worker, workers, first)
        return self._made(worker, workers, first, phase)

    def timestamps(self) -> Iterator[int]:
        """When the requests of a trace are due: ns from its first one, time-scaled, never decreasing. Ends with it."""
        if not isinstance(self._asks, Trace):
            raise PlanError("a replayed load needs a trace as its workload (workload.prompts.trace)")
        return self._asks.timestamps()

    def _varies_not(self) -> bool:
        return self.workload.prefix != "unique" and (
            self.workload.output_tokens is None or self.workload.output_tokens.kind == "fixed"
        )

    def _same(self, worker: int, workers: int, first: int) -> Iterator[Item]:
        """The very same item per target, so that it is rendered once."""
        ask = next(self._asks.asks(0, 1, 0, 0))
        phase = self._phase(0)
        items = [self._item(ask, target, phase) for target in range(len(self.targets))]
        if len(items) == 1:
            return repeat(items[0])
        return (items[self._target_of(slot)] for slot in slots(worker, workers, first))

    def _made(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Item]:
        keys = self._phase(phase)
        for ask in self._asks.asks(worker, workers, first, phase):
            yield self._item(ask, self._target_of(ask.slot), keys)

    def _phase(self, phase: int) -> _Phase:
        prefix, tokens = self._prefix or (None, 0)
        return _Phase(key_of(self._seed, phase, "output"), prefix and prefix(phase), tokens)

    def _item(self, ask: Ask, target: int, phase: _Phase) -> Item:
        prompt = ask.prompt
        if phase.prefix is not None:
            prompt = prefixed(prompt, phase.prefix(ask.slot), self.targets[target].system, self._joint)
        prompt = self._limited(prompt, ask.slot, 0, phase)
        reply = prompt.max_tokens or self._replies[target]
        if ask.turns is None:
            tokens = self._estimate(prompt) if ask.tokens is None else ask.tokens + phase.prefix_tokens
            asked = 0 if ask.tokens is None or self.targets[target].system else tokens
            return Item(prompt, target, tokens + reply, asked_tokens=asked)
        turns = tuple(
            turn._replace(max_tokens=self._max_tokens(turn.max_tokens, ask.slot, number, phase))
            for number, turn in enumerate(ask.turns, 1)
        )
        session = self._session(ask.slot, prompt, turns, target)
        return Item(prompt, target, session.estimate_tokens, session)

    def _session(self, slot: int, prompt: Prompt, turns: tuple[Turn, ...], target: int) -> Session:
        reply = self._replies[target]
        return Session(slot, prompt, turns, lambda asked: self._estimate(asked) + (asked.max_tokens or reply))

    def _limited(self, prompt: Prompt, slot: int, turn: int, phase: _Phase) -> Prompt:
        limit = self._max_tokens(prompt.max_tokens, slot, turn, phase)
        return prompt if limit == prompt.max_tokens else prompt._replace(max_tokens=limit)

    def _max_tokens(self, asked: int | None, slot: int, turn: int, phase: _Phase) -> int | None:
        """The row's own limit, else one drawn from `workload.output_tokens`."""
        if asked is not None or self._output is None:
            return asked
        return self._output(mix(phase.output_key ^ slot ^ turn << _TURN_SHIFT))

    def _estimate(self, prompt: Prompt) -> int:
        """Prompt tokens by the number of characters."""
        characters, tokens = len(prompt.system or ""), 0
        for message in prompt.messages:
            content = message["content"]
            if isinstance(content, str):
                characters += len(content)
                continue
            for part in content:
                if "text" in part:
                    characters += len(part["text"])
                else:
                    tokens += IMAGE_TOKENS
        return tokens + self.prose.estimate(characters)


class Synthetic:
    """Made-up prompts of `input_tokens` tokens, drawn per slot; no two slots of a phase begin alike."""

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


class Single:
    """The plan's one prompt for every slot."""

    def __init__(self, workload: Workload) -> None:
        if not workload.prompt:
            raise PlanError("the prompt is empty (workload.prompt)")
        self._prompt = Prompt(({"role": "user", "content": workload.prompt},), columns={"prompt": workload.prompt})

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        return (Ask(slot, self._prompt) for slot in slots(worker, workers, first))


def source_of(plan: Plan, *, seed: int) -> Source:
    """The plan's workload, its file opened and its first rows checked. Raises PlanError."""
    return Source(plan, seed)


def _reply_tokens(target: Target) -> int:
    """How long a target's replies may be by its own parameters."""
    return next(limits_in(target.parameters), OUTPUT_TOKENS)


def limits_in(parameters: dict[str, Any]) -> Iterator[int]:
    """The output limits among a target's parameters, at any depth."""
    for name in _LIMITS:
        value = parameters.get(name)
        if isinstance(value, int) and value > 0:
            yield value
    for nested in parameters.values():  # google: generationConfig, Ollama: options
        if isinstance(nested, dict):
            yield from limits_in(nested)


_KINDS: Final[dict[str, Callable[[Workload, int, Prose], Asks]]] = {
    "prompt": lambda workload, seed, prose: Single(workload),
    "file": lambda workload, seed, prose: Rows(workload, seed),
    "synthetic": Synthetic,
    "sharegpt": ShareGpt,
    "trace": Trace,
    "sessions": lambda workload, seed, prose: Sessions(workload, seed),
    "plugin": lambda workload, seed, prose: PluggedAsks(workload, seed),
}
