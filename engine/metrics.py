"""The catalogue: every metric, outcome and health field once, with its label, unit, help and exporter names.

Statistics, SLO expressions, exporters, console, HTML report and REFERENCE.md derive their lists from here: a new metric
is one entry. Imports nothing, so that a worker and `lens --help` can load it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Of every distribution, in the order of exporters' columns, and the percentiles among them.
STATISTICS: Final = ("mean", "stddev", "min", "max", "p50", "p90", "p95", "p99", "p99_9")
PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}
TOKEN_KINDS: Final = ("input", "output", "cached", "reasoning")
RATES: Final = (
    "requests_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "events_per_s",
    "goodput_per_s",
    "goodput_share",
)
SHARES: Final = ("itl_coalesced_share", "ttft_coalesced_share", "connection_reused_share")

# Histogram units per unit of the metric. Every metric is counted in the same integer HDR histogram (1e3 .. 3.6e12), so
# latencies are ns, rates micro-tokens/s and costs 10 pico-USD: 3 digits from 1 token/s and from 5 micro-USD on.
_SCALE_OF_UNIT: Final = {"ms": 1e6, "tok/s": 1e6, "USD": 1e11, "tokens": 1e6}

# Upper bounds ("less than or equal", in the metric's unit) of the classic histograms that time-series databases keep.
# Short enough for low cardinality. Those of times hold the bounds that OpenTelemetry's GenAI conventions advise for
# every client metric (10 ms times powers of two, to 81.92 s), so that they add up with those of other clients.
# A list that changes must change its length: that is how collectors.rollup knows the counts of an older run.
_E2E_MS: Final = tuple(10 * 2**k for k in range(15))
_BELOW_MS: Final = (
    1,
    2,
    5,
    10,
    15,
    20,
    25,
    30,
    40,
    50,
    60,
    80,
    100,
    120,
    160,
    200,
    250,
    320,
    400,
    500,
    640,
    800,
    1_000,
)
_CHUNK_MS: Final = (*_BELOW_MS, *(10 * 2**k for k in range(7, 14)))
_LATENESS_MS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100, 1_000)
_RTT_MS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_TOKENS_PER_EVENT: Final = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 16, 32)

# Of native histograms: 2**4 buckets for each power of two, 4.4 % wide. The 160 buckets that Prometheus' documentation
# advises as a limit then reach from 1 ms to 1 s.
NATIVE_SCHEMA: Final = 4


class Metric(NamedTuple):
    """A distribution. `start` and `end` are the marks of a request it lies between; empty where it is computed."""

    name: str
    label: str
    help: str
    start: str = ""
    end: str = ""
    buckets: tuple[float, ...] = ()
    per_request: bool = True  # one value a request at most: may stand in a `request:` objective
    needs_gap: bool = False  # a reply of one token, or whose tokens came together, cannot have it
    otel: str = ""
    prometheus: str = ""

    @property
    def unit(self) -> str:
        if self.name.endswith("_per_event"):
            return "tokens"
        return "ms" if self.name.endswith("_ms") else "USD" if self.name.endswith("_usd") else "tok/s"

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is an improvement: speeds, but no time and no cost."""
        return self.unit == "tok/s"

    @property
    def scale(self) -> float:
        """Histogram units per unit."""
        return _SCALE_OF_UNIT[self.unit]

    @property
    def base_factor(self) -> float:
        """From its unit to the base unit of Prometheus and OpenTelemetry: they want seconds."""
        return 1e-3 if self.unit == "ms" else 1.0


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


# In the order people read them.
METRICS: Final = _by_name(
    Metric(
        "ttft_ms",
        "TTFT",
        "From sending to the first token, by kernel clock.",
        "send",
        "first_token",
        _CHUNK_MS,
        otel="gen_ai.client.operation.time_to_first_chunk",
        prometheus="gen_ai_client_operation_time_to_first_chunk_seconds",
    ),
    Metric(
        "ttft_scheduled_ms",
        "TTFT scheduled",
        "From the scheduled start to the first token.",
        "intended",
        "first_token",
        _CHUNK_MS,
        otel="lens.ttft_scheduled",
        prometheus="lens_ttft_scheduled_seconds",
    ),
    Metric("ttfo_ms", "TTFO", "From sending to the first visible (not reasoning) output.", "send", "first_output"),
    Metric("ttfb_ms", "TTFB", "From sending to the head of the reply.", "send", "headers"),
    Metric(
        "e2e_ms",
        "E2E",
        "End to end duration of successful requests.",
        "send",
        "end",
        _E2E_MS,
        otel="gen_ai.client.operation.duration",
        prometheus="gen_ai_client_operation_duration_seconds",
    ),
    Metric("e2e_scheduled_ms", "E2E scheduled", "From the scheduled start to the end.", "intended", "end"),
    Metric(
        "tpot_ms",
        "TPOT",
        "Mean time per output token after the first.",
        buckets=_CHUNK_MS,
        needs_gap=True,
        otel="lens.time_per_output_token",
        prometheus="lens_time_per_output_token_seconds",
    ),
    Metric(
        "itl_ms",
        "ITL",
        "Every gap between consecutive token events.",
        buckets=_CHUNK_MS,
        per_request=False,
        otel="gen_ai.client.operation.time_per_output_chunk",
        prometheus="gen_ai_client_operation_time_per_output_chunk_seconds",
    ),
    Metric("itl_max_ms", "ITL max", "The longest gap of each request.", needs_gap=True),
    Metric("decode_tps", "decode", "Output tokens after the first per second, first to last token.", needs_gap=True),
    Metric(
        "tokens_per_event",
        "tokens/event",
        "Output tokens per token event of each streamed reply: over 1 where the server decodes speculatively (then it is "
        "the mean acceptance length) or sends several tokens at once. `itl_ms` is the time between events.",
        buckets=_TOKENS_PER_EVENT,
        needs_gap=True,
        otel="lens.tokens_per_event",
        prometheus="lens_tokens_per_event",
    ),
    Metric("e2e_tps", "E2E rate", "Output tokens per second, from sending to the end."),
    Metric(
        "lateness_ms",
        "lateness",
        "How late requests were sent, whatever the cause.",
        "intended",
        "send",
        _LATENESS_MS,
        otel="lens.lateness",
        prometheus="lens_lateness_seconds",
    ),
    Metric(
        "client_lateness_ms",
        "client lateness",
        "The lateness that is this client's fault: without waiting for a connection to open, max_in_flight, rpm, tpm "
        "or the budget.",
        buckets=_LATENESS_MS,
        otel="lens.client_lateness",
        prometheus="lens_client_lateness_seconds",
    ),
    Metric("dns_ms", "DNS", "Name lookup of a new connection.", "connect_start", "dns_done"),
    Metric("tcp_ms", "TCP connect", "TCP handshake of a new connection.", "dns_done", "tcp_done"),
    Metric("tls_ms", "TLS handshake", "TLS handshake of a new connection.", "tcp_done", "tls_done"),
    Metric(
        "rtt_ms",
        "RTT",
        "Network round trip of the request's connection, the lowest of its last 5 minutes, by TCP_INFO at the first token. "
        "Through a proxy it is the way to the proxy.",
        buckets=_RTT_MS,
        otel="lens.rtt",
        prometheus="lens_rtt_seconds",
    ),
    Metric(
        "server_ttft_ms",
        "server TTFT",
        "TTFT without one network round trip: the server's part, and that of whatever lies behind a proxy.",
        buckets=_CHUNK_MS,
        otel="lens.server_ttft",
        prometheus="lens_server_ttft_seconds",
    ),
    Metric(
        "provider_ms",
        "by provider",
        "What the provider says it took until the reply began: llama.cpp's timings.prompt_ms, openai-processing-ms, or "
        "x-envoy-upstream-service-time.",
        buckets=_CHUNK_MS,
        otel="lens.provider_time",
        prometheus="lens_provider_time_seconds",
    ),
    Metric("cost_usd", "cost", "Usage by the provider times the dated price."),
)
SCALES: Final = {name: metric.scale for name, metric in METRICS.items()}
BUCKETS: Final = {name: metric.buckets for name, metric in METRICS.items() if metric.buckets}


class Field(NamedTuple):
    """A number about the client or the server. A counter only grows within a run (until the server restarts)."""

    label: str
    help: str
    prometheus: str
    counter: bool = False
    scale: float = 1.0  # from our unit to Prometheus' base unit
    otel: bool = True


def _counter(label: str, help_: str, name: str, *, otel: bool = False) -> Field:
    return Field(label, help_, f"lens_client_{name}", counter=True, otel=otel)


# Fields of summary.json's `client` that are numbers. `loop_lag_us` has three and is exported beside them.
CLIENT: Final = {
    "workers": Field("workers", "Worker processes.", "lens_client_workers", otel=False),
    "cpu_us_per_event": Field(
        "CPU per event, us",
        "CPU time of the workers per stream event they parsed.",
        "lens_client_cpu_seconds_per_event",
        scale=1e-6,
        otel=False,
    ),
    "cpu_utilisation": Field(
        "CPU of the busiest worker",
        "CPU time of the busiest worker as a share of one core.",
        "lens_client_cpu_utilisation_ratio",
    ),
    "steal_share": Field(
        "steal", "Share of the machine's CPU time that its hypervisor took.", "lens_client_steal_ratio"
    ),
    "rss_mb_max": Field("RSS, MB", "Memory of the largest process.", "lens_client_rss_bytes", scale=1e6, otel=False),
    "itl_coalesced_share": Field(
        "coalesced gaps", "Share of the token gaps that shared a read.", "lens_client_itl_coalesced_ratio", otel=False
    ),
    "ttft_coalesced_share": Field(
        "coalesced first tokens",
        "Share of the first tokens that shared a late read: their TTFT is an upper bound.",
        "lens_client_ttft_coalesced_ratio",
        otel=False,
    ),
    "run_queue_wait_share": Field(
        "waiting for a CPU",
        "Share of the time in which the worst worker was ready to run and had no CPU.",
        "lens_client_run_queue_wait_ratio",
    ),
    "stopped_share": Field(
        "loop stopped",
        "Share of the time in which the worst worker's loop stood still for over 100 ms at once.",
        "lens_client_stopped_ratio",
    ),
    "throttled_share": Field(
        "throttled",
        "Share of the time in which the CPU limit of a control group held the workers, over all their cores.",
        "lens_client_throttled_ratio",
    ),
    "stalled_share": Field(
        "stalled",
        "Share of the time in which the worst worker stood still for over 30 ms at once without a known cause.",
        "lens_client_stalled_ratio",
    ),
    "gc_pause_share": Field(
        "in GC", "Share of the time in which garbage collection stopped the worst worker.", "lens_client_gc_pause_ratio"
    ),
    "cpu_pressure_share": Field(
        "CPU pressure",
        "Share of the time in which some process of the machine waited for a CPU.",
        "lens_client_cpu_pressure_ratio",
    ),
    "memory_pressure_share": Field(
        "memory pressure",
        "Share of the time in which some process of the machine waited for memory.",
        "lens_client_memory_pressure_ratio",
    ),
    "io_pressure_share": Field(
        "I/O pressure",
        "Share of the time in which some process of the machine waited for a disk.",
        "lens_client_io_pressure_ratio",
    ),
    "write_wait_share": Field(
        "waiting for the disk",
        "Share of the time in which the collector waited for the run directory's disk.",
        "lens_client_write_wait_ratio",
    ),
    "retransmit_share": Field(
        "retransmitted segments (of the host)",
        "Share of the TCP segments of this network namespace that were sent again.",
        "lens_client_retransmit_ratio",
    ),
    "limited_share": Field(
        "limited ticks", "Share of the ticks in which this client was limited.", "lens_client_limited_ratio"
    ),
    "ring_drops": _counter("ring drops", "Records lost to a full ring.", "ring_drops", otel=True),
    "clock_steps": _counter("clock steps", "Steps of the wall clock.", "clock_steps", otel=True),
    "gc_pauses": _counter("GC pauses", "Garbage collections of the workers.", "gc_pauses", otel=True),
    "restarts": _counter("worker restarts", "Workers that died and were started again.", "restarts", otel=True),
    "collector_restarts": _counter("collector restarts", "Restarts of the collector.", "collector_restarts"),
    "exporter_restarts": _counter("exporter restarts", "Restarts of the exporter.", "exporter_restarts"),
    "stale_resends": _counter(
        "stale resends", "Requests sent again because their pooled connection was dead.", "stale_resends"
    ),
    "clamped": _counter("clamped values", "Values above the histogram's range.", "clamped"),
    "gaps_saturated": _counter("saturated gaps", "Token gaps longer than a gap word holds.", "gaps_saturated"),
    "late_renders": _counter(
        "late renders", "Requests whose body was not rendered when their time came.", "late_renders"
    ),
    "burst_replies": _counter(
        "replies in bursts", "Replies without a pace: most of their tokens came in bursts.", "burst_replies"
    ),
    "empty_events": _counter("empty events", "Stream events without a token, between tokens.", "empty_events"),
    "tcp_retransmits": _counter(
        "TCP retransmits (of the host)",
        "Segments sent again by everything in this network namespace, not only by this run.",
        "tcp_retransmits",
    ),
    "export_failures": _counter("failed writes", "Writes into the run directory that failed.", "export_failures"),
    "records_dropped": _counter("dropped rows", "Request rows that could not be written.", "records_dropped"),
}
CLIENT_COUNTERS: Final = tuple(name for name, field in CLIENT.items() if field.counter)

# What a target's own metrics pages say.
SERVER: Final = {
    "requests_running": Field("requests running", "Requests that the server works on.", "lens_server_requests_running"),
    "requests_waiting": Field("requests waiting", "Requests in the server's queue.", "lens_server_requests_waiting"),
    "kv_cache_usage": Field("KV cache", "Share of the server's KV cache in use.", "lens_server_kv_cache_usage_ratio"),
    "prompt_tokens_total": Field(
        "prompt tokens", "Prompt tokens since the server's start.", "lens_server_prompt_tokens", counter=True
    ),
    "generation_tokens_total": Field(
        "generated tokens", "Generated tokens since the server's start.", "lens_server_generation_tokens", counter=True
    ),
    "gpu_utilisation": Field("GPU load", "Mean load of the server's GPUs.", "lens_server_gpu_utilisation_ratio"),
    "gpu_memory_bytes": Field("GPU memory", "Memory in use on the server's GPUs.", "lens_server_gpu_memory_bytes"),
    "gpu_power_watts": Field("GPU power", "Power drawn by the server's GPUs.", "lens_server_gpu_power_watts"),
    "gpu_temperature_c": Field("GPU temperature", "The server's hottest GPU.", "lens_server_gpu_temperature_celsius"),
    "age_s": Field("age", "Since the server's pages were read.", "lens_server_age_seconds"),
    "scrape_failures": Field(
        "scrape failures",
        "Reads of the server's pages that failed.",
        "lens_server_scrape_failures",
        counter=True,
    ),
}

# Outcomes of a sent request by their group; a test holds them against engine.records.Outcome.
OUTCOMES: Final[dict[str, dict[str, str]]] = {
    "success": {"ok": "The reply is complete."},
    "connect": {
        "connect_dns": "The name was not found.",
        "connect_refused": "Nobody listens there, or a firewall refused.",
        "connect_timeout": "No connection within the limit.",
        "connect_tls": "The TLS handshake failed.",
        "connect_reset": "The connection broke before a reply began.",
    },
    "timeout": {
        "timeout_first_token": "No token within `limits.first_token_timeout`.",
        "timeout_total": "Not complete within `limits.timeout`.",
    },
    "http": {
        "http_auth": "401 or 403.",
        "http_rate_limited": "429.",
        "http_invalid": "400, 404, 413 or 422: the request itself was refused.",
        "http_overloaded": "503 or 529.",
        "http_server": "Another 5xx.",
        "http_other": "Another status that is no success.",
    },
    "stream": {
        "stream_error": "An error event inside a stream that began with 200.",
        "stream_truncated": "The body ended before the API's terminal marker.",
        "stream_malformed": "Bad HTTP, SSE or JSON.",
        "content_filtered": "The provider stopped the reply for its content.",
    },
    "ended": {
        "cancelled": "Cancelled by the plan or because the run was stopped.",
        "lost": "The worker that had sent it died.",
        "in_flight": "Still running when the run's drain limit passed.",
    },
}
UNSENT: Final = {
    "no_capacity": "`max_in_flight` was reached.",
    "budget": "The budget, rpm or tpm of the plan left no room.",
    "stopped": "The run was stopped.",
    "worker_down": "The worker whose slot it was had died.",
}
