"""The numbers at one moment: all that an exporter sees. `Report` is summary.json, `Snapshot` one tick.

Latencies in ms, rates per second, sizes as their names say. Absent data is None, never 0, and no key is ever omitted.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

SCHEMA: Final = 1


Bounds = tuple[float | None, float | None]  # of a 95 % interval; None where the sample cannot give one


class Ci95(msgspec.Struct, kw_only=True):
    """95 % intervals (collectors.confidence), in the metric's unit."""

    mean: Bounds = (None, None)
    p50: Bounds = (None, None)
    p90: Bounds = (None, None)
    p95: Bounds = (None, None)
    p99: Bounds = (None, None)
    p99_9: Bounds = (None, None)


class Distribution(msgspec.Struct, kw_only=True):
    """One metric's distribution. With no sample `count` is 0 and the rest None; `p99_9` needs n_eff >= 3688.

    `n_eff` and `ci95` are of finished runs: `ci95` is None in a tick, and in a report of a run that still goes.
    """

    count: int = 0
    mean: float | None = None
    stddev: float | None = None
    min: float | None = None
    max: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    n_eff: float | None = None  # effective number of independent values
    ci95: Ci95 | None = None


class Moments(msgspec.Struct, array_like=True, frozen=True):
    """What of a sample adds up exactly, in histogram units (metrics.SCALES); there is at least one value."""

    count: int
    sum: float
    m2: float  # sum of the squared deviations from the mean
    min: int
    max: int


class Requests(msgspec.Struct, kw_only=True):
    """planned = sent + sum(unsent); sent = ok + sum(failed) + cancelled + in_flight_at_end."""

    planned: int = 0
    sent: int = 0
    unsent: dict[str, int] = msgspec.field(default_factory=dict)
    ok: int = 0
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    cancelled: int = 0
    in_flight_at_end: int = 0
    attempts: int = 0
    tcp_retransmits: int | None = None  # segments of these requests and their handshakes sent again; None: not known


class Throughput(msgspec.Struct, kw_only=True):
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    events_per_s: float | None = None
    goodput_per_s: float | None = None
    goodput_share: float | None = None


class Tokens(msgspec.Struct, kw_only=True):
    """Sums over `ok` requests. `source` is provider | local | events | mixed, None where nothing was counted."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    source: str | None = None


class Cost(msgspec.Struct, kw_only=True):
    """Of the requests whose price is known. `usd_per_day` is at the rate that was achieved."""

    usd: float | None = None
    usd_per_1k_requests: float | None = None
    usd_per_day: float | None = None
    priced_requests: int = 0
    unpriced_requests: int = 0
    price_table_date: str | None = None


class Slice(msgspec.Struct, kw_only=True):
    """The numbers of one target, one phase, or both: over the complete run in a Report, over one tick in a Snapshot."""

    requests: Requests = msgspec.field(default_factory=Requests)
    throughput: Throughput = msgspec.field(default_factory=Throughput)
    tokens: Tokens = msgspec.field(default_factory=Tokens)
    cost: Cost = msgspec.field(default_factory=Cost)
    metrics: dict[str, Distribution] = msgspec.field(default_factory=dict)
    failure_e2e_ms: dict[str, Distribution] = msgspec.field(default_factory=dict)
    itl_coalesced_share: float | None = None
    ttft_coalesced_share: float | None = None
    connection_reused_share: float | None = None


class ServerTime(msgspec.Struct, kw_only=True):
    """One histogram of a server's page over the measured part. llama.cpp has sums without counts."""

    count: int | None = None
    sum_s: float | None = None
    mean_ms: float | None = None


class ServerWindow(msgspec.Struct, kw_only=True):
    """What a target's own pages counted in the measured part, requests of other clients included."""

    window_s: float | None = None  # between the two readings
    ttft: ServerTime = msgspec.field(default_factory=ServerTime)
    queue: ServerTime = msgspec.field(default_factory=ServerTime)
    prefill: ServerTime = msgspec.field(default_factory=ServerTime)
    decode: ServerTime = msgspec.field(default_factory=ServerTime)
    prefix_cache_queries: int | None = None  # prompt tokens looked up
    prefix_cache_hits: int | None = None
    prefix_cache_hit_share: float | None = None
    preemptions: int | None = None
    reason: str = ""  # why there are no numbers


class TimeParts(msgspec.Struct, kw_only=True):
    """Where the time of a mean request went, ms; None is unknown. network + queue + prefill + other = TTFT.

    `queue_ms` and `prefill_ms` are the server's own (`sources` says whose word each is); `other_ms` is what of the
    server's time to the first token it does not explain. `decode_ms` is from the first token to the end.
    """

    client_ms: float | None = None
    network_ms: float | None = None
    queue_ms: float | None = None
    prefill_ms: float | None = None
    other_ms: float | None = None
    server_ms: float | None = None  # queue, prefill and other together
    decode_ms: float | None = None
    sources: dict[str, str] = msgspec.field(default_factory=dict)


class TargetReport(Slice, kw_only=True):
    name: str
    provider: str
    model: str
    server: ServerWindow | None = None  # None without a metrics_url, and while the run goes on
    time: TimeParts = msgspec.field(default_factory=TimeParts)


class PhaseReport(Slice, kw_only=True):
    name: str
    load: str  # closed | open | partly_open | replay | probe
    measured: bool
    start_s: float  # since the start of the run
    duration_s: float
    window_s: float = 0.0  # what its rates are over


class Replies(msgspec.Struct, kw_only=True, frozen=True):
    """What the replies say about their server, in ok requests of the measured phases."""

    finish: dict[str, int] = {}  # by how they ended: stop | length | other | missing
    missing_expected: int = 0  # of the missing ones, those whose API names no reason at all
    length_asked: int = 0  # replies of which a number of tokens was asked, and whose tokens are known
    shorter: int = 0  # of them, those over 10 % shorter or longer than was asked
    longer: int = 0
    cut_short: int = 0  # shorter ones that say they ended at their limit
    output_ratio: float | None = None  # output tokens over those asked for
    ended_early: bool = False  # the plan forbids the model to end by itself (ignore_eos, min_tokens)
    compared: int = 0  # replies of at least 16 tokens
    identical: int = 0  # of them, those equal to an earlier reply to another prompt
    repeated_prompts: int = 0  # requests whose prompt the warm-up asked before
    counted: int = 0  # replies whose output tokens the provider counted
    usage_under_events: int = 0  # of them, those with fewer tokens than events that carried a token
    tokens_per_event: float | None = None
    cached_share: float | None = None  # of the prompt tokens; None where the plan asks for shared prefixes
    cached_by_phase: dict[str, float | None] = {}

    @property
    def ok(self) -> int:
        return sum(self.finish.values())


class Lag(msgspec.Struct, kw_only=True):
    """Kernel stamp to user read, over every read: how late this client was, without harm to the numbers."""

    p50: float | None = None
    p99: float | None = None
    max: float | None = None


class Client(msgspec.Struct, kw_only=True):
    """The health of the measuring side."""

    workers: int = 0
    clock: str = "kernel"  # kernel | user | mixed
    cpu_us_per_event: float | None = None
    loop_lag_us: Lag = msgspec.field(default_factory=Lag)
    cpu_utilisation: float | None = None  # of the busiest worker, 1.0 is one complete core
    steal_share: float | None = None
    rss_mb_max: float | None = None
    ring_drops: int = 0
    stamps: str = "read"  # segment: each TCP segment has its own | read: the latest of each read | mixed
    itl_coalesced_share: float | None = None
    ttft_coalesced_share: float | None = None  # of the first tokens: they shared a late read, TTFT is an upper bound
    run_queue_wait_share: float | None = None  # of the time, by the worst worker: ready to run and without a CPU
    stopped_share: float | None = None  # of the time, by the worst worker: its loop stood still for over 100 ms at once
    throttled_share: float | None = None  # of the time, by the CPU limit of a control group, over all its cores
    stalled_share: float | None = None  # of the time, by the worst worker: stops over 30 ms without a known cause
    gc_pause_share: float | None = None  # of the time, by the worst worker
    cpu_pressure_share: float | None = None  # of the time, some process of the machine waited (/proc/pressure)
    memory_pressure_share: float | None = None
    io_pressure_share: float | None = None
    write_wait_share: float | None = None  # of the time, the collector waited for the run directory's disk
    retransmit_share: float | None = None  # of the TCP segments that the whole network namespace sent
    limited_share: float | None = None  # of the ticks (in a run: the measured ones), this client was limited
    limited_by: dict[str, int] = msgspec.field(default_factory=dict)  # ticks by reason (collectors.tick_health)
    clock_steps: int = 0
    gc_pauses: int = 0
    restarts: int = 0
    collector_restarts: int = 0
    exporter_restarts: int = 0
    stale_resends: int = 0
    clamped: int = 0
    gaps_saturated: int = 0  # token gaps longer than a gap word holds (73 minutes)
    late_renders: int = 0  # requests whose body was not ready when their time came
    burst_replies: int = 0  # ok replies that have no tpot_ms and decode_tps: most of their tokens came in bursts
    empty_events: int = 0  # stream events without a token between the first and the last token of their reply
    tcp_retransmits: int | None = None  # of the whole network namespace, not only of this run's connections
    export_failures: int = 0
    records_dropped: int = 0  # request rows that could not be written to requests.msgpack


class Reason(msgspec.Struct):
    code: str
    detail: str
    note: bool = False  # it is worth knowing and does not invalidate


class Verdict(msgspec.Struct, kw_only=True):
    state: str = "INSUFFICIENT"  # VALID | INVALID | INSUFFICIENT
    reasons: list[Reason] = msgspec.field(default_factory=list)
    error_budget: dict[str, Any] = msgspec.field(default_factory=dict)


class Slo(msgspec.Struct):
    """`needs_requests` and `needs_s` more would decide it; None unless UNDECIDED, or where no number is in sight."""

    expression: str
    value: float | None
    state: str  # PASS | FAIL | UNDECIDED
    ci95: Bounds | None = None  # None for what is a fact of the run: a maximum, a rate, a cost
    needs_requests: int | None = None
    needs_s: float | None = None


class Goal(msgspec.Struct):
    """One `until` of the plan: the run ends when all are reached."""

    expression: str
    value: float | None
    half_width_share: float | None  # of the interval, relative to the value
    reached: bool


class DriftReport(msgspec.Struct):
    """Change of a metric's mean over the window, in its unit per hour."""

    per_h: float
    ci95: tuple[float, float]


class SteadySlice(msgspec.Struct, kw_only=True):
    """The run over its stationary part only: start-up and drain of each measured phase cut off."""

    state: str = "too_short"  # steady | drifting | too_short
    from_s: float | None = None  # since the start of the run
    to_s: float | None = None
    reason: str = ""
    requests: Requests = msgspec.field(default_factory=Requests)
    throughput: Throughput = msgspec.field(default_factory=Throughput)
    metrics: dict[str, Distribution] = msgspec.field(default_factory=dict)
    drift: dict[str, DriftReport] = msgspec.field(default_factory=dict)  # by metric


class GpuReport(msgspec.Struct, kw_only=True):
    """What the run means per GPU: throughput, the price of the tokens and their energy. None where the plan and the
    server's pages do not say."""

    count: int
    requests_per_s: float | None = None  # of one GPU, as the two below
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    usd_per_million_output_tokens: float | None = None
    usd_per_million_total_tokens: float | None = None
    watts: float | None = None  # of all GPUs together
    joules_per_output_token: float | None = None


class Run(msgspec.Struct, kw_only=True):
    id: str
    name: str
    version: str
    started_at: str  # ISO 8601, UTC
    duration_s: float = 0.0
    phases: list[PhaseReport] = msgspec.field(default_factory=list)
    load: str = "closed"
    seed: int = 0
    plan_sha256: str = ""
    # until | requests | duration | budget | slo | error_rate | interrupted | failed; None while it goes on
    ended_by: str | None = None
    host: dict[str, Any] = msgspec.field(default_factory=dict)


class Report(msgspec.Struct, kw_only=True):
    """summary.json."""

    schema: int = SCHEMA
    run: Run
    verdict: Verdict = msgspec.field(default_factory=Verdict)
    requests: Requests = msgspec.field(default_factory=Requests)
    throughput: Throughput = msgspec.field(default_factory=Throughput)
    tokens: Tokens = msgspec.field(default_factory=Tokens)
    cost: Cost = msgspec.field(default_factory=Cost)
    metrics: dict[str, Distribution] = msgspec.field(default_factory=dict)
    failure_e2e_ms: dict[str, Distribution] = msgspec.field(default_factory=dict)
    steady: SteadySlice | None = None  # None while the run goes on
    targets: list[TargetReport] = msgspec.field(default_factory=list)
    slo: list[Slo] = msgspec.field(default_factory=list)
    gpus: GpuReport | None = None  # None where the plan has no `gpus`
    replies: Replies | None = None  # None for a part of a run
    client: Client = msgspec.field(default_factory=Client)
    errors: list[ErrorSample] = msgspec.field(default_factory=list)


class ErrorSample(msgspec.Struct, kw_only=True):
    """The latest message seen for one outcome of one target."""

    target: str
    outcome: str
    count: int
    message: str
    http_status: int | None = None


class Interval(Slice, kw_only=True):
    """One (phase, target) during one tick.

    `requests.sent`, output tokens, events, `itl_ms` and `ttft_ms` are of what happened in the tick, requests that still
    run included, in cells of at most 1.6 %; everything else is of the requests that ended in it. `in_flight` is that of
    the tick's end. Summed over a run's ticks, tokens are those reported (collectors.totals.settle).
    """

    target: str
    phase: str
    measured: bool
    in_flight: int = 0
    # what adds up over ticks (collectors.rollup): all that was counted, by the lower-case names of series.Tally and of
    # the outcomes, without zeros; and the moments of each metric, of `itl_ms` and `ttft_ms` by the requests' end as
    # `<metric>.ended`, of the failures' as `e2e_ms.<outcome>`
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    moments: dict[str, Moments] = msgspec.field(default_factory=dict)
    # per metric of metrics.BUCKETS: how many of this tick's values fell in each bucket, one more than bounds (the rest above)
    buckets: dict[str, list[int]] = msgspec.field(default_factory=dict)
    # per metric: how many of this tick's values fell in each bucket of a native histogram, by its number
    # (statistics.native_buckets); where an export of the plan shows them
    native: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    # per metric: the tick's HDR histogram as a line of intervals.hlog has it; where an export of the plan asks for `hdr`
    hdr: dict[str, str] = msgspec.field(default_factory=dict)


class Server(msgspec.Struct, kw_only=True):
    """What a target's own Prometheus pages said last, in names common to all servers; None where they do not say."""

    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_cache_usage: float | None = None  # 0 to 1
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    gpu_utilisation: float | None = None  # 0 to 1, mean of its GPUs
    gpu_memory_bytes: float | None = None
    gpu_power_watts: float | None = None
    gpu_temperature_c: float | None = None  # of the hottest
    age_s: float | None = None  # since the oldest of the pages these are from was read
    scrape_failures: int = 0


class Snapshot(msgspec.Struct, kw_only=True):
    """One tick of one run: one line of intervals.jsonl. Written once per tick, exactly once, in order."""

    schema: int = SCHEMA
    run: str
    tick: int
    wall_time_ns: int  # of the end of the tick, Unix epoch; the same for the same tick however often it is written
    elapsed_s: float  # since the start of the run, to the end of the tick
    seconds: float  # length of the tick
    state: str  # running | draining | done
    phase: str
    in_flight: int
    sent_total: int
    ok_total: int
    failed_total: int
    unsent_total: int
    planned_total: int | None  # None while it cannot be known
    cost_usd_total: float | None = None
    until: list[Goal] = msgspec.field(default_factory=list)
    intervals: list[Interval] = msgspec.field(default_factory=list)
    client: Client = msgspec.field(default_factory=Client)
    servers: dict[str, Server] = msgspec.field(default_factory=dict)  # by target, of those with a metrics_url


ENCODER: Final = msgspec.json.Encoder()
REPORT_DECODER: Final = msgspec.json.Decoder(Report)
SNAPSHOT_DECODER: Final = msgspec.json.Decoder(Snapshot)
