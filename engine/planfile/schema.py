"""The form of a plan file where it differs from the Plan, and the JSON Schema of a plan file and of summary.json.

The structs of engine.plan.plan declare every ordinary key. Here are the short and alternative forms beside them: loads,
lengths, sources of prompts, keys, the one `target`. They are read by build.py and shapes.py and never leave this folder.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from ..plan.plan import (
    IN_FLIGHT_MAX,
    RATE_MAX_PER_S,
    REQUESTS_MAX,
    SECOND,
    TOKENS_MAX,
    Alert,
    Frozen,
    Gpus,
    InfluxExport,
    Limits,
    OtlpExport,
    Output,
    Phase,
    Plan,
    PluginExport,
    Probe,
    PrometheusExport,
    Retry,
    Target,
    Workers,
    Workload,
    about,
)
from .document import fields_of

SOURCES: Final = ("prompt", "file", "synthetic", "sharegpt", "trace", "sessions", "plugin")
PRICE_KINDS: Final = ("input", "cached_input", "cache_write", "output", "reasoning")
WAYS: Final = (("from", "to", "curve"), ("steps",), ("base", "spike"))  # in which a load's value changes over time
DIALECT: Final = "openai"


class SpikeKeys(Frozen, frozen=True):
    """A rise and the fall after it."""

    to: Annotated[float, about("the value at its height")]
    at: Annotated[str, about("when it begins, from the start of the phase", "duration", low=0)]
    length: Annotated[str, about("how long it lasts", "duration", above=0)] = msgspec.field(name="for")


class CourseKeys(Frozen, frozen=True):
    """A value over time: from and to, or steps, or base and spike."""

    start: Annotated[float, about("value at the start")] = msgspec.field(name="from", default=0)
    to: Annotated[float, about("value at the end")] = 0
    curve: Annotated[Literal["linear", "exponential"], about("how it goes from one to the other")] = "linear"
    steps: Annotated[tuple[Any, ...], about("[value, duration] each; or values alone, of equal length")] = ()
    base: Annotated[float, about("value before and after the spike")] = 0
    spike: Annotated[SpikeKeys | None, about("a rise and the fall after it")] = None


class LoadKeys(Frozen, frozen=True):
    """How requests are started; one of concurrency, rate and replay."""

    concurrency: Annotated[
        int | CourseKeys | None,
        about("closed loop: requests in flight; default: 8", low=1, high=IN_FLIGHT_MAX, flag="--concurrency N"),
    ] = None
    rate: Annotated[
        float | str | CourseKeys | None,
        about("open loop: requests per second, whatever the server does", "rate", high=RATE_MAX_PER_S, flag="--rate R"),
    ] = None
    replay: Annotated[bool | None, about("the trace's own timestamps")] = None
    arrivals: Annotated[str, about("open loop: constant, poisson or gamma:SHAPE", flag="--arrivals KIND")] = "constant"
    max_in_flight: Annotated[
        int | None, about("open loop: cap of requests in flight", low=1, high=IN_FLIGHT_MAX, flag="--max-in-flight N")
    ] = None
    overflow: Annotated[
        Literal["wait", "drop"], about("what a slot does when the cap is full", flag="--overflow wait|drop")
    ] = "wait"
    stagger_ns: Annotated[
        int, about("closed loop: spread the first requests over this long", "duration", low=0, flag="--stagger TIME")
    ] = 0


class LengthKeys(Frozen, frozen=True):
    """A distribution of token lengths: one of mean, uniform and values."""

    mean: Annotated[float, about("mean number of tokens", above=0, high=TOKENS_MAX)] = 0
    stddev: Annotated[float, about("standard deviation", low=0, high=TOKENS_MAX)] = 0
    distribution: Annotated[Literal["fixed", "normal", "lognormal"], about("default: normal with a stddev")] = "fixed"
    min: Annotated[int, about("shortest", low=1, high=TOKENS_MAX)] = 1
    max: Annotated[int | None, about("longest", low=1, high=TOKENS_MAX)] = None
    uniform: Annotated[tuple[int, ...], about("[low, high]", low=1, high=TOKENS_MAX)] = ()
    values: Annotated[tuple[int, ...], about("the lengths that occur", low=1, high=TOKENS_MAX)] = ()
    weights: Annotated[tuple[float, ...], about("how often each value occurs", low=0, high=1e9)] = ()


LENGTHS: Final = {
    "mean": ["mean", "stddev", "distribution", "min", "max"],
    "uniform": ["uniform"],
    "values": ["values", "weights"],
}


class SyntheticKeys(Frozen, frozen=True):
    """Made-up prompts."""

    input_tokens: Annotated[int | LengthKeys | None, about("tokens of a prompt")] = 550
    output_tokens: Annotated[int | LengthKeys | None, about("ask for at most this many output tokens")] = None


class WorkloadKeys(Workload, frozen=True):
    """What is asked. The sources of prompts may also stand under `prompts`."""

    prompts: Annotated[str | dict[str, Any] | None, about("one source of prompts, as {file: x.jsonl}; or a text")] = (
        None
    )
    prompt: Annotated[str, about("one prompt for all requests", flag="--prompt TEXT")] = Workload().prompt
    file: Annotated[str | None, about("prompts from a JSONL, CSV or text file", "file", flag="--prompts FILE")] = None
    synthetic: Annotated[SyntheticKeys | None, about("made-up prompts of given lengths")] = None
    sharegpt: Annotated[str | None, about("conversations of a ShareGPT file", "file")] = None
    trace: Annotated[str | None, about("a trace with timestamps and lengths", "file")] = None
    sessions: Annotated[str | None, about("conversations of several turns with think times", "file")] = None
    plugin: Annotated[str | None, about("a workload of an installed package, by its name")] = None
    output_tokens: Annotated[int | LengthKeys | None, about("ask for at most this many output tokens")] = None  # type: ignore[assignment]  # its form in a file


class CancelKeys(Frozen, frozen=True):
    """Requests aborted on purpose."""

    share: Annotated[float, about("share of the requests", low=0, high=1)] = 0.0
    after_ns: Annotated[int, about("time from sending to the abort", "duration", low=0)] = 0


class LimitsKeys(Limits, frozen=True):
    """When a request or the run is given up."""

    cancel: Annotated[CancelKeys, about("requests aborted on purpose")] = CancelKeys()


class PhaseKeys(Phase, frozen=True):
    """A part of the run with its own load. It ends after duration or requests, whichever is first."""

    name: Annotated[str, about("name in reports; default: phase-1, phase-2, ...")] = ""
    load: Annotated[LoadKeys, about("how requests are started")] = LoadKeys()  # type: ignore[assignment]  # its form in a file


class TimetableKeys(Frozen, frozen=True):
    """When a target is probed."""

    every_ns: Annotated[int, about("time between two requests", "duration", above=0)] = 30 * SECOND
    jitter_ns: Annotated[int, about("each is up to this much later", "duration", low=0)] = 0
    quiet_hours: Annotated[str | tuple[str, ...], about("times of the day without requests, as 22:00-06:00")] = ()


class ProbeKeys(Probe, frozen=True):
    """What `lens probe` does."""

    every_ns: Annotated[int, about("time between two requests", "duration", above=0)] = 30 * SECOND
    jitter_ns: Annotated[int, about("each is up to this much later", "duration", low=0)] = 0
    quiet_hours: Annotated[str | tuple[str, ...], about("times of the day without requests, as 22:00-06:00")] = ()
    webhook: Annotated[str | None, about("URL that every alert is posted to", "secret")] = None


class TargetKeys(Target, frozen=True):
    """Where and how to ask."""

    name: Annotated[str, about("name in reports; default: the host")] = ""
    provider: Annotated[str, about("the API's dialect (see `lens providers`)", flag="--provider NAME")] = DIALECT
    base_url: Annotated[
        str, about("where the API is; for openai it ends in /v1; default: the provider's", flag="--base-url URL")
    ] = ""
    api_key_env: Annotated[
        str | None, about("environment variable that holds the API key", flag="--api-key-env NAME")
    ] = None
    api_key_file: Annotated[str | None, about("file that holds the API key", flag="--api-key-file FILE")] = None
    probe: Annotated[TimetableKeys | None, about("the target's own timetable")] = None


class ExportKeys(Frozen, frozen=True):
    """Where the time series goes."""

    influxdb: Annotated[InfluxExport | tuple[InfluxExport, ...] | None, about("InfluxDB")] = None
    prometheus: Annotated[PrometheusExport | tuple[PrometheusExport, ...] | None, about("a page for Prometheus")] = None
    otlp: Annotated[OtlpExport | tuple[OtlpExport, ...] | None, about("OpenTelemetry")] = None
    plugin: Annotated[PluginExport | tuple[PluginExport, ...] | None, about("exporters of installed packages")] = None


class PlanKeys(Plan, frozen=True):
    """A plan file."""

    name: Annotated[str, about("name of the run; default: the file's", flag="--name NAME")] = ""
    targets: Annotated[tuple[TargetKeys, ...], about("where and how to ask")] = ()
    target: Annotated[TargetKeys | None, about("a single one of targets")] = None
    workload: Annotated[str | WorkloadKeys, about("what is asked; a text is one prompt for all")] = ""  # type: ignore[assignment]  # its form in a file
    phases: Annotated[tuple[PhaseKeys, ...], about("parts of the run, one after the other")] = ()
    load: Annotated[LoadKeys | None, about("the load of a run without phases")] = None
    duration_ns: Annotated[
        int | None, about("end after this long; default: 30s in open loop", "duration", above=0, flag="--duration TIME")
    ] = None
    requests: Annotated[
        int | None,
        about(
            "end after this many requests; default: 100 in closed loop", low=1, high=REQUESTS_MAX, flag="--requests N"
        ),
    ] = None
    warmup_ns: Annotated[
        int | None, about("the same load first for this long, not measured", "duration", above=0, flag="--warmup TIME")
    ] = None
    limits: Annotated[LimitsKeys, about("when a request or the run is given up")] = LimitsKeys()
    retry: Annotated[Retry, about("what is tried again")] = Retry()
    workers: Annotated[int | str | Workers, about("worker processes")] = Workers()  # type: ignore[assignment]  # its form in a file
    export: Annotated[
        str | tuple[str | ExportKeys, ...] | ExportKeys,
        about("where the time series goes; repeatable", flag="--export URL"),
    ] = ()  # type: ignore[assignment]  # its form in a file
    probe: Annotated[ProbeKeys, about("what `lens probe` does")] = ProbeKeys()
    references: tuple[()] = ()


_UNITS: Final[dict[str, dict[str, Any]]] = {
    "duration": {"type": ["string", "number"], "examples": ["250ms", "10s", "5m", "2h", "7d"]},
    "size": {"type": ["string", "integer"], "examples": [4096, "100MB", "1GiB"]},
}
SECTIONS: Final = (
    PlanKeys, TargetKeys, WorkloadKeys, SyntheticKeys, LengthKeys, PhaseKeys, LoadKeys, CourseKeys, SpikeKeys,
    LimitsKeys, CancelKeys, Retry, Workers, ExportKeys, InfluxExport, PrometheusExport, OtlpExport,
    PluginExport, ProbeKeys,
    TimetableKeys, Alert, Output, Gpus,
)  # fmt: skip


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan file, for editors: `lens schema plan`."""
    schema = msgspec.json.schema(PlanKeys)
    parts = schema["$defs"]
    parts["Secret"] = {"type": "string"}
    for struct in SECTIONS:
        if struct.__name__ not in parts:
            continue
        declared = {field.key: field for field in fields_of(struct)}
        properties = parts[struct.__name__]["properties"]
        for key in [*properties]:
            field = declared.get(key)
            if field is None:
                del properties[key]
            elif field.unit in _UNITS:
                properties[key] = {"description": field.text, **_UNITS[field.unit]}
            else:
                _loosen(properties[key])
        parts[struct.__name__]["required"] = []
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "llm-latency-lens plan", **schema}


def _loosen(schema: dict[str, Any]) -> None:
    """A number may also be written as text: `"${NAME}"` is filled in from the environment."""
    kind = schema.get("type")
    if kind in ("integer", "number"):
        schema["type"] = [kind, "string"]
    elif kind == "array" and schema.get("items", {}).get("type") == "string":
        schema["type"] = ["array", "string"]
    for each in schema.get("anyOf", ()):
        _loosen(each)
