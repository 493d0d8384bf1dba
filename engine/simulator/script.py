"""What a simulated model does: a validated script, and the draws that follow from it and a seed. No clock, no I/O.

Every draw is a pure function of (seed, index of the request, token): the same script and the same order of arrival
give the same replies in every run.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from ..errors import PlanError
from .faults import FAULTS, OK

SAMPLES: Final = 1 << 16  # a distribution is this many draws made beforehand; a draw is then one look-up
MASK: Final = SAMPLES - 1
MS: Final = 1_000_000

Spread = int | float | str
_PARAMETERS: Final = {"uniform": 2, "lognormal": 2, "exponential": 1}
_FORMS: Final = "a number, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or exponential:MEAN"


def _help(text: str) -> Any:
    return msgspec.Meta(description=text)


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the model behaves. Distributions: a number, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or exponential:MEAN."""

    seed: Annotated[int, _help("seed of every draw")] = 0
    ttft_ms: Annotated[Spread, _help("time to the first token, from the start of service")] = 50
    itl_ms: Annotated[Spread, _help("time between tokens events")] = 20
    tokens: Annotated[Spread, _help("visible output tokens of a reply, before max_tokens")] = 100
    reasoning_tokens: Annotated[Spread, _help("reasoning tokens before the visible ones")] = 0
    tokens_per_event: Annotated[int, _help("tokens that one event carries")] = 1
    events_per_write: Annotated[int, _help("token events that one write carries (bursts)")] = 1
    writes_per_event: Annotated[int, _help("writes that one token event is split over")] = 1
    itl_per_running_us: Annotated[float, _help("added to each gap for every other running request (batch effect)")] = (
        0.0
    )
    opening: Annotated[
        Literal["early", "with_first"],
        _help("send head and role chunk at the start of service, or with the first token"),
    ] = "early"
    closing: Annotated[
        Literal["apart", "with_last"],
        _help("send finish, usage and end in a write of their own, or with the last token"),
    ] = "apart"
    closing_ms: Annotated[float, _help("time between the last token and the end of the stream")] = 0.0
    role_chunk: Annotated[bool, _help("OpenAI: send a role-only first chunk")] = True
    usage: Annotated[
        Literal["asked", "always", "never", "in_finish"],
        _help("OpenAI: when to report usage (in_finish: with the finish chunk)"),
    ] = "asked"
    cached_share: Annotated[float, _help("share of the prompt tokens reported as cached")] = 0.0
    cached_after: Annotated[int, _help("requests before cached_share applies: a cache that warms up")] = 0
    distinct_replies: Annotated[
        int | None, _help("texts of all replies, in turn (1: always the same); none: one of its own for each prompt")
    ] = None
    obey_max_tokens: Annotated[bool, _help("end a reply at the request's limit")] = True
    finish: Annotated[
        Literal["true", "stop", "length", "none"],
        _help("the finish reason that every reply claims; true: why it ended"),
    ] = "true"
    usage_factor: Annotated[float, _help("output tokens reported over output tokens sent")] = 1.0
    keep_alive: Annotated[bool, _help("keep connections open after a reply")] = True
    ping_ms: Annotated[float, _help("send an SSE comment or ping this often before the first token; 0: never")] = 0.0
    concurrency: Annotated[int | None, _help("requests in service at once; more wait")] = None
    queue: Annotated[int | None, _help("requests that may wait; more get 503")] = None
    rpm: Annotated[float | None, _help("requests per minute; more get 429")] = None
    tpm: Annotated[float | None, _help("prompt and output tokens per minute; more get 429")] = None
    limit_burst_s: Annotated[float, _help("rpm and tpm allow this many seconds of their rate at once")] = 1.0
    freeze: Annotated[
        tuple[tuple[float, float], ...],
        _help("[[from, to], ...] in s after the first request: sends and answers nothing"),
    ] = ()
    faults: Annotated[dict[str, float], _help("{fault: probability}, at most one fault a request")] = {}
    sequence: Annotated[tuple[str, ...], _help("faults by request in turn, 'ok' for none; replaces probabilities")] = ()
    fault_at: Annotated[float, _help("share of the reply after which a mid-stream fault begins")] = 0.5
    retry_after_s: Annotated[float, _help("what a 429 asks for")] = 1.0
    slow_head_ms: Annotated[float, _help("delay of the head in the slow_head fault")] = 500.0
    models: Annotated[tuple[str, ...], _help("names /v1/models lists; any other is served too")] = ("sim",)

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "itl_ms", "tokens", "reasoning_tokens"):
            _parsed(getattr(self, name), name)
        for name in ("tokens_per_event", "events_per_write", "writes_per_event", "concurrency", "distinct_replies"):
            _require(getattr(self, name) is None or getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.usage_factor > 0, "usage_factor", "> 0", self.usage_factor)
        for name in ("rpm", "tpm"):
            _require(getattr(self, name) is None or getattr(self, name) > 0, name, "> 0", getattr(self, name))
        for name in ("fault_at", "cached_share"):
            _require(0 <= getattr(self, name) <= 1, name, "in 0..1", getattr(self, name))
        for name in (*self.faults, *self.sequence):
            _require(name in FAULTS, "faults", f"one of {', '.join(FAULTS)}", name)
        _require(sum(self.faults.values()) <= 1 + 1e-9, "faults", "probabilities that add up to <= 1", self.faults)
        _require(all(0 <= a < b for a, b in self.freeze), "freeze", "pairs of 0 <= from < to", self.freeze)


def _require(holds: bool, name: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def _parsed(spread: Spread, name: str) -> tuple[str, tuple[float, ...]]:
    if isinstance(spread, int | float):
        _require(spread >= 0, name, ">= 0", spread)
        return "constant", (float(spread),)
    kind, *texts = spread.split(":")
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        numbers = ()
    known = _PARAMETERS.get(kind) == len(numbers) and all(number >= 0 for number in numbers)
    _require(known and not (kind == "uniform" and numbers[0] > numbers[1]), name, _FORMS, spread)
    return kind, numbers


def script_of(values: dict[str, Any]) -> Script:
    """The script that `values` (decoded JSON) describes. Raises PlanError naming the key and what it may be."""
    try:
        return msgspec.convert(values, Script, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise PlanError(f"simulator: {error}") from error


def flags() -> list[tuple[str, str, str]]:
    """(flag, script key, help) for every key of a script: what the two command lines offer."""
    described = []
    for field in msgspec.json.schema(Script)["$defs"]["Script"]["properties"].items():
        key, schema = field
        described.append(("--" + key.replace("_", "-"), key, schema.get("description", "")))
    return described


def value_of(text: str) -> Any:
    """A flag's text as a script value: JSON where it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def script_from(path: str | None, given: dict[str, str], faults: Iterable[str]) -> Script:
    """The script of a file with flags over it. Raises PlanError."""
    values = {}
    if path:
        try:
            values = msgspec.json.decode(Path(path).read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise PlanError(f"simulator: cannot read script {path}: {error}") from error
    values |= {key: value_of(text) for key, text in given.items()}
    if isinstance(values.get("sequence"), str):
        values["sequence"] = values["sequence"].split(",")
    chances = dict(values.get("faults", {}))
    for text in faults:
        name, _, chance = text.partition("=")
        chances[name] = value_of(chance)
    return script_of(values | {"faults": chances})


class Samples:
    """A distribution as a table of draws, `scale` times the script's number, rounded to integers."""

    __slots__ = ("constant", "values")

    def __init__(self, spread: Spread, *, name: str, seed: int, scale: int = 1) -> None:
        kind, numbers = _parsed(spread, name)
        self.constant: int | None = round(numbers[0] * scale) if kind == "constant" else None
        self.values = array("q")
        if self.constant is None:
            draw = _drawing(kind, numbers, random.Random(f"{seed}/{name}"))
            self.values = array("q", (round(draw() * scale) for _ in range(SAMPLES)))

    def at(self, index: int, step: int = 0) -> int:
        """The draw for request `index`, `step` draws into its reply. 65536 requests use each sample once."""
        if self.constant is not None:
            return self.constant
        return self.values[(index * 40503 + step) & MASK]


def _drawing(kind: str, numbers: tuple[float, ...], chance: random.Random) -> Callable[[], float]:
    if kind == "uniform":
        return lambda: chance.uniform(numbers[0], numbers[1])
    if kind == "exponential":
        return lambda: chance.expovariate(1 / numbers[0]) if numbers[0] else 0.0
    location = math.log(numbers[0]) if numbers[0] else -math.inf
    return lambda: math.exp(location + numbers[1] * chance.gauss(0, 1))


class Draws:
    """The script's chances, drawn beforehand: what request `index` of this server gets."""

    __slots__ = ("_bounds", "_chance", "_sequence", "itl", "reasoning", "tokens", "ttft")

    def __init__(self, script: Script) -> None:
        self.ttft = Samples(script.ttft_ms, name="ttft_ms", seed=script.seed, scale=MS)
        self.itl = Samples(script.itl_ms, name="itl_ms", seed=script.seed, scale=MS)
        self.tokens = Samples(script.tokens, name="tokens", seed=script.seed)
        self.reasoning = Samples(script.reasoning_tokens, name="reasoning_tokens", seed=script.seed)
        self._sequence = script.sequence
        self._bounds: list[tuple[float, str]] = []
        total = 0.0
        for name, probability in script.faults.items():
            total += probability
            self._bounds.append((total, name))
        self._chance = Samples("uniform:0:1", name="fault", seed=script.seed, scale=1 << 40) if script.faults else None

    def fault(self, index: int) -> str:
        """The name of what goes wrong with request `index`: OK for nothing."""
        if self._sequence:
            return self._sequence[index % len(self._sequence)]
        if self._chance is None:
            return OK
        drawn = self._chance.at(index) / (1 << 40)
        return next((name for bound, name in self._bounds if drawn < bound), OK)
