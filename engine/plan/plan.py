"""The plan: one run, validated and frozen. These structs are also the declaration of the plan file.

A field's name without its unit (`timeout_ns` -> `timeout`) is the key in the file, its type and `about(...)` say what it
may be, its default is the file's default. engine.planfile reads files by it; the JSON Schema, the flags and the tables of
REFERENCE.md are made from it. A new key with an ordinary value is one line here.

Durations are integer ns (`_ns`), rates are per second (`_per_s`), sizes are bytes. A Plan crosses to the workers as
msgpack (`ENCODER`, `DECODER`) with its secrets; people and files only ever see `engine.plan.written.masked(plan)`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

MASK: Final = "***"
SECOND: Final = 1_000_000_000
WHOLE_MAX: Final = (1 << 63) - 1  # what msgpack and the records can carry
DURATION_MAX_NS: Final = 36_500 * 86_400 * SECOND  # a hundred years
RATE_MAX_PER_S: Final = 1_000_000.0  # far beyond what a host can send
IN_FLIGHT_MAX: Final = 1_000_000
TOKENS_MAX: Final = 10_000_000  # the longest context windows there are
REQUESTS_MAX: Final = 1_000_000_000_000

Unit = Literal["duration", "seconds", "size", "rate", "file", "folder", "secret", "text", ""]
_FILE_NAMES: Final = {"metrics_urls": "metrics_url"}


def file_name(field: str) -> str:
    """The key in a plan file of a struct's field: without the unit that the value itself carries there."""
    return _FILE_NAMES.get(field) or field.removesuffix("_ns").removesuffix("_s")


def about(
    text: str,
    unit: Unit = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    flag: str = "",
) -> msgspec.Meta:
    """What a key means and may be: low <= value <= high, value > above; `flag` is its name on the command line.

    Bounds are checked when a file is read, not when a worker decodes the plan.
    """
    bounds = (("minimum", low), ("exclusiveMinimum", above), ("maximum", high))
    schema = {name: bound for name, bound in bounds if bound is not None and not unit}
    extra = {"unit": unit, "low": low, "above": above, "high": high, "flag": flag}
    return msgspec.Meta(description=text, extra_json_schema=schema, extra=extra)


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=file_name):
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
    Pointers are RFC 6901 JSON Pointers into each event (or the complete reply where framing is `none`).
    """

    method: Annotated[str, about("HTTP method")] = "POST"
    path: Annotated[str, about("path and query below base_url")] = ""
    body: Annotated[Any, about("template of the request body")] = None
    framing: Annotated[Literal["sse", "ndjson", "chunks", "none"], about("how events are separated")] = "sse"
    text: Annotated[str | None, about("pointer to visible text")] = None
    reasoning: Annotated[str | None, about("pointer to reasoning text")] = None
    input_tokens: Annotated[str | None, about("pointer to the number of input tokens")] = None
    output_tokens: Annotated[str | None, about("pointer to the number of output tokens")] = None
    cached_tokens: Annotated[str | None, about("pointer to the number of cached input tokens")] = None
    reasoning_tokens: Annotated[str | None, about("pointer to the number of reasoning tokens")] = None
    finish: Annotated[str | None, about("pointer to the reason of the end")] = None
    error: Annotated[str | None, about("pointer to an error inside the stream")] = None
    end: Annotated[str | None, about("pointer whose truthy value ends the stream")] = None
    end_marker: Annotated[str | None, about("the literal event that ends the stream, such as [DONE]")] = None


class Target(Frozen, frozen=True):
    """Where and how to ask."""

    name: Annotated[str, about("name in reports; default: the host")]
    provider: Annotated[str, about("the API's dialect (see `lens providers`)", flag="--provider NAME")]
    base_url: Annotated[str, about("where the API is; for openai it ends in /v1", flag="--base-url URL")]
    model: Annotated[str, about("the model to ask for", flag="--model NAME")] = ""
    api_key: Annotated[Secret | None, about("the API key; better: ${NAME} of an environment variable", "secret")] = None
    headers: Annotated[dict[str, str | Secret], about("further request headers")] = {}
    parameters: Annotated[dict[str, Any], about("passed through to the request body untouched")] = {}
    system: Annotated[str | None, about("system prompt", "text")] = None
    stream: Annotated[bool, about("ask for a stream; there is no TTFT without one")] = True
    weight: Annotated[float, about("share of the requests, relative to the other targets", above=0, high=1e9)] = 1.0
    api_version: Annotated[str | None, about("azure-openai: ?api-version=; google: path segment (v1beta, v1)")] = None
    http: Annotated[Generic | None, about("the endpoint's description, for provider http")] = None
    proxy: Annotated[
        Secret | None, about("HTTP proxy, with credentials if needed; '' for none", "secret", flag="--proxy URL")
    ] = None
    verify_tls: Annotated[bool, about("verify the TLS certificate")] = True
    ca_file: Annotated[
        str | None,
        about("trust this PEM file's authorities instead of the system's", "file", flag="--ca-file FILE"),
    ] = None
    resolve: Annotated[str | None, about("connect to this address instead of asking DNS")] = None
    fresh_connections: Annotated[bool, about("a new connection for every request", flag="--fresh-connections")] = False
    max_connection_age_ns: Annotated[int | None, about("close connections that are older", "duration", above=0)] = None
    rpm: Annotated[float | None, about("never more than this many requests per minute", above=0)] = None
    tpm: Annotated[float | None, about("never more than this many tokens per minute", above=0)] = None
    burst_s: Annotated[float, about("rpm and tpm hold this much time of their rate", "seconds", above=0)] = 1.0
    metrics_urls: Annotated[
        tuple[str, ...], about("the server's own Prometheus pages (and its GPUs'), scraped beside the run")
    ] = ()
    metrics_interval_ns: Annotated[
        int, about("time between two scrapes of them; 0: only before and after each measured part", "duration", low=0)
    ] = 5 * SECOND
    price: Annotated[
        dict[str, float] | None,
        about("USD per million tokens: input, output, cached_input, cache_write, reasoning"),
    ] = None


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

    kind: Literal["prompt", "file", "synthetic", "sharegpt", "trace", "sessions", "plugin"] = "prompt"
    prompt: str = "Write one paragraph about the speed of light."
    path: str = ""  # file | sharegpt | trace | sessions; plugin: its name
    options: Annotated[dict[str, Any], about("passed to the workload of plugin")] = {}
    template: Annotated[str | None, about("text with {{column}}, for files of rows")] = None
    input_tokens: Length | None = None  # of synthetic prompts
    output_tokens: Annotated[Length | None, about("ask for at most this many output tokens")] = None
    tokenizer: Annotated[
        str | None, about("tokenizer.json or o200k_base, cl100k_base, ...: for synthetic prompts and local counts")
    ] = None
    calibration: Annotated[
        float, about("real over estimated prompt tokens, where there is no tokenizer", above=0, high=1000)
    ] = 1.0
    count_tokens: Annotated[bool, about("count output tokens locally where the provider does not say")] = False
    prefix: Annotated[Literal["none", "unique", "shared"], about("text before each prompt")] = "none"
    prefix_tokens: Annotated[int, about("length of the prefix", low=0, high=TOKENS_MAX)] = 0
    order: Annotated[Literal["sequential", "shuffle", "random"], about("order of a file's rows")] = "sequential"
    time_scale: Annotated[float, about("trace: 2 replays at half speed", above=0, high=1e9)] = 1.0
    think_time_ns: Annotated[int | None, about("sessions: instead of the file's", "duration", low=0)] = None
    keep_replies: Annotated[bool, about("store prompts and replies")] = False
    salt: Annotated[
        str, about("what makes this run's synthetic prompts differ from another's: run, none, or a text of your own")
    ] = "run"


class Shape(Frozen, frozen=True):
    """One segment of a load's value over time, from `start` to `end` in `duration_ns`."""

    duration_ns: int
    start: float
    end: float
    curve: Literal["linear", "exponential"] = "linear"


class Timetable(Frozen, frozen=True):
    """When a target is probed: once in every `every_ns` of wall time, up to `jitter_ns` into it, not in quiet hours.

    `quiet` are spans [from, to) in minutes of the local day; one that ends before it begins goes over midnight.
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
    """A part of the run with its own load. It ends at `duration_ns` or after `requests` slots, whichever is first."""

    name: Annotated[str, about("name in reports; default: phase-1, phase-2, ...")]
    load: Load
    duration_ns: Annotated[int | None, about("end after this long", "duration", above=0)] = None
    requests: Annotated[int | None, about("end after this many requests", low=1, high=REQUESTS_MAX)] = None
    measure: Annotated[bool, about("count it in the results")] = True


class Limits(Frozen, frozen=True):
    """When a request or the run is given up."""

    connect_timeout_ns: Annotated[
        int, about("limit of connecting", "duration", above=0, flag="--connect-timeout TIME")
    ] = 10 * SECOND
    first_token_timeout_ns: Annotated[
        int | None, about("limit until the first token", "duration", above=0, flag="--first-token-timeout TIME")
    ] = None
    timeout_ns: Annotated[int, about("limit of one request", "duration", above=0, flag="--timeout TIME")] = 120 * SECOND
    drain_ns: Annotated[int, about("wait at the end for requests in flight", "duration", low=0)] = 30 * SECOND
    rpm: Annotated[float | None, about("never more than this many requests per minute", above=0, flag="--rpm N")] = None
    tpm: Annotated[float | None, about("never more than this many tokens per minute", above=0, flag="--tpm N")] = None
    burst_s: Annotated[float, about("rpm and tpm hold this much time of their rate", "seconds", above=0)] = 1.0
    budget_usd: Annotated[
        float | None, about("stop before the requests cost more than this", above=0, flag="--budget-usd USD")
    ] = None
    max_error_rate: Annotated[
        float | None,
        about("stop when more than this share of requests fail", low=0, high=1, flag="--max-error-rate SHARE"),
    ] = None
    error_window_ns: Annotated[int, about("over which max_error_rate is judged", "duration", above=0)] = 10 * SECOND
    stop_on_slo: Annotated[bool, about("stop when an objective has failed")] = False
    cancel_share: float = 0.0  # share of requests aborted on purpose
    cancel_after_ns: int = 0


class Retry(Frozen, frozen=True):
    """Only connect errors and 408/409/429/5xx are tried again, never after the first token."""

    attempts: Annotated[int, about("tries of one request, the first one included: 1 is no retry", low=1, high=1000)] = 1
    backoff_ns: Annotated[int, about("wait before the second attempt", "duration", low=0)] = SECOND // 2
    backoff_max_ns: Annotated[int, about("longest wait", "duration", above=0)] = 30 * SECOND
    factor: Annotated[float, about("growth of the wait from attempt to attempt", low=1, high=1e6)] = 2.0
    jitter: Annotated[float, about("share of the wait that is random", low=0, high=1)] = 0.25
    respect_retry_after: Annotated[bool, about("wait as long as the server asks")] = True


class Workers(Frozen, frozen=True):
    """The processes that make the load."""

    count: Annotated[
        int | None,
        about("worker processes; default: one per physical core but one", low=1, high=1024, flag="--workers N|auto"),
    ] = None
    pin: Annotated[bool, about("pin processes to cores")] = True
    realtime: Annotated[
        Literal["auto", "on", "off"],
        about("real-time priority (SCHED_RR) where allowed; auto: unless a target runs on this machine"),
    ] = "auto"


class Exported(Frozen, frozen=True, tag_field="kind"):
    """One place the time series goes. `kind` is the exporter's name, as in the plan file."""

    url: Secret

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Pushed(Exported, frozen=True):
    """One that is written to; what it does not take waits on disk."""

    interval_ns: Annotated[int, about("time between two writes; default: every tick", "duration", above=0)] = 0
    spool_max_bytes: Annotated[int | None, about("most that waits on disk for it", "size")] = None


class InfluxExport(Pushed, frozen=True, tag="influxdb"):
    """InfluxDB 1.8, 2 and 3: every tick as line protocol."""

    url: Annotated[Secret, about("http(s)://HOST:PORT, or influxdb://[TOKEN@]HOST[:PORT]/[ORG/]BUCKET", "secret")]
    org: Annotated[str, about("organization")] = ""
    bucket: Annotated[str, about("bucket or database")] = ""
    token: Annotated[Secret | None, about("API token", "secret")] = None
    verify_tls: Annotated[bool, about("verify the TLS certificate")] = True
    hdr: Annotated[bool, about("write the histograms, too")] = False


class PrometheusExport(Exported, frozen=True, tag="prometheus"):
    """A page for Prometheus to scrape."""

    url: Annotated[Secret, about("prometheus://[HOST]:PORT, where to listen", "secret")] = Secret("")


class OtlpExport(Pushed, frozen=True, tag="otlp"):
    """OpenTelemetry metrics over OTLP/HTTP."""

    url: Annotated[Secret, about("otlp://HOST[:PORT], or http(s)://HOST:PORT/v1/metrics", "secret")]
    headers: Annotated[dict[str, Secret], about("further request headers")] = {}
    spans: Annotated[
        float,
        about(
            "share of the requests that also become a span at /v1/traces; all then carry a traceparent", low=0, high=1
        ),
    ] = 0.0


class PluginExport(Pushed, frozen=True, kw_only=True, tag="plugin"):
    """An exporter of an installed package."""

    name: Annotated[str, about("the exporter's name, as its package registers it")]
    url: Annotated[Secret, about("NAME://..., as the package wants it", "secret")] = Secret("")
    token: Annotated[Secret | None, about("API token", "secret")] = None
    options: Annotated[dict[str, Any], about("passed to the exporter")] = {}


Export = InfluxExport | PrometheusExport | OtlpExport | PluginExport
EXPORTS: Final[dict[str, type[Export]]] = {
    str(each.__struct_config__.tag): each for each in (InfluxExport, PrometheusExport, OtlpExport, PluginExport)
}


class Output(Frozen, frozen=True):
    """What is kept of a run."""

    dir: Annotated[str, about("where run directories go", "folder", flag="--out DIR")] = "runs"
    records: Annotated[bool, about("write requests.msgpack")] = True
    records_max_bytes: Annotated[int, about("most that the records of a run may take", "size")] = 1 << 30
    tick_ns: Annotated[int, about("time between two snapshots", "duration", low=10**7, high=3600 * SECOND)] = SECOND
    token_times: Annotated[
        str, about("keep the arrival of each token event: none, all, a share such as 0.01, or slowest:N")
    ] = "none"


class Alert(Frozen, frozen=True):
    """Fires while `when` (an SLO expression) holds over the last `over_ns`, with at least `samples` requests in them."""

    name: Annotated[str, about("name in messages; default: alert-1, alert-2, ...")]
    when: Annotated[str, about("an SLO expression, such as ttft_ms.p95 > 2000")]
    over_ns: Annotated[int, about("the window that is judged", "duration", above=0)] = 300 * SECOND
    target: Annotated[str | None, about("only this target; default: all together")] = None
    samples: Annotated[int, about("fewest requests in the window", low=1, high=REQUESTS_MAX)] = 1
    webhook: Annotated[Secret | None, about("URL that is posted to", "secret")] = None


class Probe(Frozen, frozen=True):
    """What `lens probe` does beside the plan's load. Without `timetables` the load is the plan's first measured phase."""

    timetables: tuple[Timetable, ...] = ()
    given: bool = False  # the plan has a `probe` key: it is meant for `lens probe`
    daily_budget_usd: Annotated[float | None, about("most that a local day may cost", above=0)] = None
    rotate_ns: Annotated[int, about("each run of the history is this long", "duration", low=10 * SECOND)] = (
        3600 * SECOND
    )
    retention_ns: Annotated[int, about("runs of the history are kept this long", "duration", above=0)] = (
        30 * 86_400 * SECOND
    )
    alerts: Annotated[tuple[Alert, ...], about("conditions that are reported")] = ()


class Gpus(Frozen, frozen=True):
    # What the server runs on, for throughput per GPU, the price of a token and its energy.
    count: Annotated[int, about("GPUs behind the targets of the plan together", low=1, high=1_000_000)] = 1
    usd_per_hour: Annotated[float | None, about("price of one GPU for an hour", above=0, high=1e6)] = None
    watts: Annotated[float | None, about("power of one GPU; default: by its DCGM page", above=0, high=1e6)] = None


class Plan(Frozen, frozen=True):
    """One run."""

    name: Annotated[str, about("name of the run; default: the file's", flag="--name NAME")]
    targets: tuple[Target, ...]
    workload: Workload
    phases: tuple[Phase, ...]
    limits: Annotated[Limits, about("when a request or the run is given up")] = Limits()
    retry: Annotated[Retry, about("what is tried again")] = Retry()
    slo: Annotated[
        tuple[str, ...], about("an objective, such as 'ttft_ms.p99 <= 500'; repeatable", flag="--slo EXPR")
    ] = ()
    until: Annotated[
        tuple[str, ...],
        about(
            "end when each is known that well, such as 'ttft_ms.p99 +-5%', at most after an hour unless duration or requests say so; repeatable",
            flag="--until EXPR",
        ),
    ] = ()
    steady: Annotated[bool, about("judge objectives over the stationary part only", flag="--steady")] = False
    workers: Annotated[Workers, about("worker processes")] = Workers()
    stamps: Annotated[
        Literal["auto", "segment", "read"],
        about("which kernel stamp of a token: its TCP segment's own, or the latest of the read", flag="--stamps KIND"),
    ] = "auto"
    traceparent: Annotated[
        bool, about("send a W3C traceparent header, so that a server's trace has the request", flag="--traceparent")
    ] = False
    export: Annotated[tuple[Export, ...], about("where the time series goes")] = ()
    output: Annotated[Output, about("what is kept")] = Output()
    seed: Annotated[int, about("seed of everything that is drawn", low=0, high=WHOLE_MAX, flag="--seed N")] = 0
    price_table: Annotated[str | None, about("file of prices", "file")] = None
    gpus: Annotated[Gpus | None, about("what the server runs on")] = None
    probe: Annotated[Probe, about("what `lens probe` does")] = Probe()
    # What stood in the file as ${NAME}: (value, text with ${NAME}). plan.json holds the text, never the value.
    references: tuple[tuple[Secret, str], ...] = ()

    @property
    def span_share(self) -> float:
        """Share of the requests that become spans."""
        return max((export.spans for export in self.export if isinstance(export, OtlpExport)), default=0.0)

    @property
    def trace_share(self) -> float | None:
        """Share of the requests whose traceparent says "sampled"; None: none has the header."""
        return self.span_share or (1.0 if self.traceparent else None)

    def series(self, phase: int, target: int) -> int:
        """The id under which gaps and drops of (phase, target) are counted."""
        return phase * len(self.targets) + target


ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(Plan)
