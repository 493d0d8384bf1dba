"""The plan: one run, validated and frozen. Only the nouns; engine.planfile makes one out of files and flags.

Durations are integer ns (`_ns`), rates are per second (`_per_s`), sizes are bytes. A Plan crosses to the workers as
msgpack (`ENCODER`, `DECODER`) with its secrets; people and files only ever see `masked(plan)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

MASK: Final = "***"
SECOND: Final = 1_000_000_000


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a plan: immutable, closed to unknown keys."""


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value that must never be shown. `repr` and `str` are masked; only the wire rendering reads `value`."""

    value: str

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__


class Generic(Frozen, frozen=True):
    """How to ask and understand an endpoint the lens has no dialect for (`provider: http`).

    `body` is a JSON template with `{{prompt}} {{model}} {{max_tokens}} {{stream}}` and any `{{column}}` of the workload.
    Pointers are RFC 6901 JSON Pointers into each event (or the whole reply where framing is `none`).
    """

    method: str = "POST"
    path: str = ""
    body: Any = None
    framing: Literal["sse", "ndjson", "chunks", "none"] = "sse"
    text: str | None = None
    reasoning: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    cached_tokens: str | None = None
    reasoning_tokens: str | None = None
    finish: str | None = None
    error: str | None = None
    end: str | None = None  # pointer whose truthy value ends the stream
    end_marker: str | None = None  # or the literal event that does, such as [DONE]


class Target(Frozen, frozen=True):
    """Where and how to ask."""

    name: str
    provider: str
    base_url: str
    model: str = ""
    api_key: Secret | None = None
    headers: dict[str, str | Secret] = {}
    parameters: dict[str, Any] = {}  # passed through to the request body untouched
    system: str | None = None
    stream: bool = True
    weight: float = 1.0
    api_version: str | None = None  # azure-openai: ?api-version=; google: path segment (v1beta, v1)
    http: Generic | None = None
    proxy: Secret | None = None  # URL, may hold credentials
    verify_tls: bool = True
    ca_file: str | None = None
    resolve: str | None = None  # connect to this address instead of asking DNS
    fresh_connections: bool = False
    max_connection_age_ns: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    burst_s: float = 1.0  # token buckets hold this many seconds of their rate
    metrics_urls: tuple[str, ...] = ()  # the server's own Prometheus pages (and its GPUs'), scraped beside the run
    price: dict[str, float] | None = None  # USD per 1M tokens: input, cached_input, cache_write, output, reasoning


class Length(Frozen, frozen=True):
    """A distribution of token lengths."""

    kind: Literal["fixed", "normal", "lognormal", "uniform", "empirical"] = "fixed"
    mean: float = 0.0
    stddev: float = 0.0
    low: int = 1
    high: int | None = None
    values: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


class Workload(Frozen, frozen=True):
    """What is asked. `kind` names the one source that is used."""

    kind: Literal["prompt", "file", "synthetic", "sharegpt", "trace", "sessions"] = "prompt"
    prompt: str = "Write one paragraph about the speed of light."
    path: str = ""  # file | sharegpt | trace | sessions
    template: str | None = None  # text with {{column}}, for files of rows
    input_tokens: Length | None = None
    output_tokens: Length | None = None  # asked for as max tokens; None leaves it to `parameters`
    tokenizer: str | None = None  # tokenizer.json or a toktok vocabulary, for synthetic prompts and local counts
    calibration: float = 1.0  # real over estimated prompt tokens by a probe; sizes made-up texts without a tokenizer
    count_tokens: bool = False  # count output tokens locally where the provider does not say
    prefix: Literal["none", "unique", "shared"] = "none"
    prefix_tokens: int = 0
    salt: str = "none"  # begins made-up texts; "run", until `salted` has made it the run's id
    order: Literal["sequential", "shuffle", "random"] = "sequential"
    time_scale: float = 1.0  # trace: 2.0 replays at half speed
    think_time_ns: int | None = None  # sessions: overrides what the file says
    keep_replies: bool = False  # store prompts and replies; off by default


class Shape(Frozen, frozen=True):
    """One stretch of a load's value over time, from `start` to `end` in `duration_ns`."""

    duration_ns: int
    start: float
    end: float
    curve: Literal["linear", "exponential"] = "linear"


class Timetable(Frozen, frozen=True):
    """When a target is probed: once in every `every_ns` of wall time, up to `jitter_ns` into it, not in quiet hours.

    `quiet` are stretches [from, to) in minutes of the local day; one that ends before it begins goes over midnight.
    """

    target: str
    every_ns: int
    jitter_ns: int = 0
    quiet: tuple[tuple[int, int], ...] = ()


class Load(Frozen, frozen=True):
    """Closed (`concurrency`), open (`rate`), partly open (`rate` of sessions), replayed (`timestamps`) or a probe.

    `shapes` is the value over the phase, at least one; a constant load is one flat shape. A probe follows `timetables`,
    one per target, from `origin_wall_ns` (Unix epoch) on; with `at_once` each target is also asked at the start.
    """

    model: Literal["closed", "open", "partly_open", "replay", "probe"]
    shapes: tuple[Shape, ...]
    arrivals: Literal["constant", "poisson", "gamma"] = "constant"
    gamma_shape: float = 1.0  # 1 is Poisson, below 1 burstier
    max_in_flight: int | None = None
    overflow: Literal["wait", "drop"] = "wait"
    stagger_ns: int = 0  # closed loop: spread the first requests over this long
    timetables: tuple[Timetable, ...] = ()
    origin_wall_ns: int = 0
    at_once: bool = False


class Phase(Frozen, frozen=True):
    """A stretch of the run with its own load. It ends at `duration_ns` or after `requests` slots, whichever is first."""

    name: str
    load: Load
    duration_ns: int | None = None
    requests: int | None = None
    measure: bool = True


class Limits(Frozen, frozen=True):
    connect_timeout_ns: int = 10 * SECOND
    first_token_timeout_ns: int | None = None
    timeout_ns: int = 120 * SECOND
    drain_ns: int = 30 * SECOND
    rpm: float | None = None
    tpm: float | None = None
    burst_s: float = 1.0
    budget_usd: float | None = None
    max_error_rate: float | None = None
    error_window_ns: int = 10 * SECOND
    stop_on_slo: bool = False
    cancel_share: float = 0.0  # share of requests aborted on purpose
    cancel_after_ns: int = 0


class Retry(Frozen, frozen=True):
    """`attempts` counts the first one: 1 is no retry. Only connect errors and 408/409/429/5xx, never after the first token."""

    attempts: int = 1
    backoff_ns: int = SECOND // 2
    backoff_max_ns: int = 30 * SECOND
    factor: float = 2.0
    jitter: float = 0.25
    respect_retry_after: bool = True


class Workers(Frozen, frozen=True):
    count: int | None = None  # None: physical cores minus one, at least 1
    pin: bool = True


class Export(Frozen, frozen=True):
    """One place the time series goes: `kind` is the exporter's name, `url` where, `options` what only it understands.

    Common to those that push: `interval`, ns between two writes, and `spool_max_bytes`.
    """

    kind: str
    url: Secret
    options: dict[str, str | int | float | bool | Secret] = {}


class Output(Frozen, frozen=True):
    dir: str = "runs"
    records: bool = True
    records_max_bytes: int = 1 << 30
    tick_ns: int = SECOND


class Alert(Frozen, frozen=True):
    """Fires while `when` (an SLO expression) holds over the last `over_ns`, with at least `samples` requests in them."""

    name: str
    when: str
    over_ns: int = 300 * SECOND
    target: str | None = None  # None: all targets together
    samples: int = 1
    webhook: Secret | None = None  # URL


class Probe(Frozen, frozen=True):
    """What `lens probe` does beside the plan's load. Without `timetables` the load is the plan's first measured phase."""

    timetables: tuple[Timetable, ...] = ()
    daily_budget_usd: float | None = None  # per local day
    rotate_ns: int = 3600 * SECOND  # each stretch of this long is a run of its own in the history
    retention_ns: int = 30 * 86_400 * SECOND
    alerts: tuple[Alert, ...] = ()


class Plan(Frozen, frozen=True):
    name: str
    targets: tuple[Target, ...]
    workload: Workload
    phases: tuple[Phase, ...]
    limits: Limits = Limits()
    retry: Retry = Retry()
    slo: tuple[str, ...] = ()
    workers: Workers = Workers()
    export: tuple[Export, ...] = ()
    output: Output = Output()
    seed: int = 0
    price_table: str | None = None
    probe: Probe = Probe()

    def series(self, phase: int, target: int) -> int:
        """The id under which gaps and drops of (phase, target) are counted."""
        return phase * len(self.targets) + target


ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(Plan)


def salted(plan: Plan, run_id: str) -> Plan:
    """The plan as its workers get it: a salt of "run" is the run's id, the same in all of them and in no other run."""
    if plan.workload.salt != "run":
        return plan
    return msgspec.structs.replace(plan, workload=msgspec.structs.replace(plan.workload, salt=run_id))


def masked(plan: Plan) -> dict[str, Any]:
    """The plan as plain data with every secret replaced by `***`: what plan.json, logs and reports may hold."""
    plain: dict[str, Any] = _mask(plan)
    return plain


def secrets(plan: Plan | Target) -> Iterator[str]:
    """Every secret value of the plan or target, for those who must check that none leaks."""
    yield from _secrets(plan)


def _mask(part: Any) -> Any:
    if isinstance(part, Secret):
        return MASK
    if isinstance(part, msgspec.Struct):
        return {name: _mask(getattr(part, name)) for name in part.__struct_fields__}
    if isinstance(part, dict):
        return {key: _mask(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_mask(item) for item in part]
    return part


def _secrets(part: Any) -> Iterator[str]:
    if isinstance(part, Secret):
        yield part.value
    elif isinstance(part, msgspec.Struct):
        for name in part.__struct_fields__:
            yield from _secrets(getattr(part, name))
    elif isinstance(part, dict):
        for value in part.values():
            yield from _secrets(value)
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _secrets(item)
