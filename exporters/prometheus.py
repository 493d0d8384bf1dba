"""A run's ticks as a Prometheus page: `/metrics` (text format 0.0.4) and `/healthz`, on loopback unless told otherwise.

The page is a pure function of the ticks so far; a scrape reads sums in memory and can hold up nothing but itself.
OpenTelemetry's GenAI names where they exist, base units everywhere, `target` and `phase` on all but the client's:

    gen_ai_client_operation_duration_seconds      histogram  E2E of `ok` requests        } + gen_ai_operation_name,
    gen_ai_server_time_to_first_token_seconds     histogram  TTFT                        } gen_ai_provider_name,
    gen_ai_server_time_per_output_token_seconds   histogram  TPOT                        } gen_ai_request_model
    gen_ai_client_token_usage                     histogram  sum and count, + gen_ai_token_type (input, output)
    lens_ttft_scheduled_seconds, lens_inter_token_latency_seconds, lens_lateness_seconds     histograms
    lens_requests_total{outcome}, lens_requests_sent_total, lens_requests_unsent_total{reason}, lens_cost_usd_total,
    lens_tokens_total{type}                                                                  counters
    lens_requests_in_flight                                                                  gauge
    lens_tick_latency_seconds{metric,level}    gauge: the exact percentiles of the last tick
    lens_run_info{run,name}, lens_run_tick, lens_run_elapsed_seconds, lens_run_done          gauges
    lens_client_{workers, cpu_utilisation_ratio, cpu_seconds_per_event, steal_ratio, rss_bytes, itl_coalesced_ratio},
    lens_client_loop_lag_seconds{level}                                                   gauges
    lens_client_{ring_drops, clock_steps, gc_pauses, restarts, collector_restarts, stale_resends, clamped,
    tcp_retransmits, export_failures, records_dropped}_total                                 counters
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..collectors.snapshot import BUCKETS, Client, Interval, Snapshot
from ..engine.errors import OutputError, PlanError
from ..engine.plan.plan import Export
from .spool.tail import Destination

if TYPE_CHECKING:
    from aiohttp import web

CONTENT_TYPE: Final = "text/plain; version=0.0.4"
PORT: Final = 9464
HISTOGRAMS: Final = {
    "e2e_ms": ("gen_ai_client_operation_duration_seconds", "End to end duration of successful requests."),
    "ttft_ms": ("gen_ai_server_time_to_first_token_seconds", "From sending to the first token, by kernel clock."),
    "tpot_ms": ("gen_ai_server_time_per_output_token_seconds", "Mean time per output token after the first."),
    "ttft_scheduled_ms": ("lens_ttft_scheduled_seconds", "From the scheduled start to the first token."),
    "itl_ms": ("lens_inter_token_latency_seconds", "Every gap between consecutive token events."),
    "lateness_ms": ("lens_lateness_seconds", "How late requests were sent: this client's own error."),
}
CLIENT_COUNTERS: Final = (
    "ring_drops",
    "clock_steps",
    "gc_pauses",
    "restarts",
    "collector_restarts",
    "stale_resends",
    "clamped",
    "tcp_retransmits",
    "export_failures",
    "records_dropped",
)
CLIENT_GAUGES: Final = (
    ("cpu_utilisation", "lens_client_cpu_utilisation_ratio", 1.0),
    ("cpu_us_per_event", "lens_client_cpu_seconds_per_event", 1e-6),
    ("steal_share", "lens_client_steal_ratio", 1.0),
    ("rss_mb_max", "lens_client_rss_bytes", 1e6),
    ("itl_coalesced_share", "lens_client_itl_coalesced_ratio", 1.0),
)
SERVER_GAUGES: Final = {
    "requests_running": ("lens_server_requests_running", "Requests that the server works on."),
    "requests_waiting": ("lens_server_requests_waiting", "Requests in the server's queue."),
    "kv_cache_usage": ("lens_server_kv_cache_usage_ratio", "Share of the server's KV cache in use."),
    "prompt_tokens_total": ("lens_server_prompt_tokens", "Prompt tokens since the server's start."),
    "generation_tokens_total": ("lens_server_generation_tokens", "Generated tokens since the server's start."),
    "gpu_utilisation": ("lens_server_gpu_utilisation_ratio", "Mean load of the server's GPUs."),
    "gpu_memory_bytes": ("lens_server_gpu_memory_bytes", "Memory in use on the server's GPUs."),
    "gpu_power_watts": ("lens_server_gpu_power_watts", "Power drawn by the server's GPUs."),
    "gpu_temperature_c": ("lens_server_gpu_temperature_celsius", "The server's hottest GPU."),
    "age_s": ("lens_server_age_seconds", "Since the server's pages were read."),
    "scrape_failures": ("lens_server_scrape_failures", "Reads of the server's pages that failed."),
}
QUANTILES: Final = (("p50", "0.5"), ("p90", "0.9"), ("p95", "0.95"), ("p99", "0.99"), ("p99_9", "0.999"))

Labels = tuple[tuple[str, str], ...]
Families = dict[str, tuple[str, str, list[str]]]  # name -> type, help, sample lines


class Distribution:
    """A cumulative classic histogram."""

    __slots__ = ("buckets", "count", "sum")

    def __init__(self, buckets: int) -> None:
        self.buckets = [0] * buckets
        self.count = 0
        self.sum = 0.0


class Totals:
    """The sums of all ticks so far: `add` takes one in, `page` renders them. No lock, no clock, no socket."""

    def __init__(self, models: Mapping[str, tuple[str, str]], name: str) -> None:
        self._models = models  # target -> provider, model
        self._name = name
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[Labels, Distribution]] = defaultdict(dict)
        self._last: Snapshot | None = None

    def add(self, tick: Snapshot) -> None:
        for interval in tick.intervals:
            self._add(interval)
        self._last = tick

    def _add(self, interval: Interval) -> None:
        at: Labels = (("target", interval.target), ("phase", interval.phase))
        q = interval.requests
        for outcome, n in {"ok": q.ok, "cancelled": q.cancelled, **q.failed}.items():
            self._counters["lens_requests_total"][*at, ("outcome", outcome)] += n
        for reason, n in q.unsent.items():
            self._counters["lens_requests_unsent_total"][*at, ("reason", reason)] += n
        self._counters["lens_requests_sent_total"][at] += q.sent
        if interval.cost.usd is not None:
            self._counters["lens_cost_usd_total"][at] += interval.cost.usd
        for kind in ("input", "output", "cached", "reasoning"):
            n_tokens = getattr(interval.tokens, kind)
            if n_tokens is not None:
                self._counters["lens_tokens_total"][*at, ("type", kind)] += n_tokens
                if kind in ("input", "output"):
                    self._tokens(at, interval, kind, n_tokens)
        for metric, (family, _) in HISTOGRAMS.items():
            self._observe(family, self._semantic(at, interval.target, family), interval, metric)

    def _observe(self, family: str, labels: Labels, interval: Interval, metric: str) -> None:
        d = interval.metrics.get(metric)
        if d is None or not d.count:
            return
        total = self._histograms[family].setdefault(labels, Distribution(len(BUCKETS[metric]) + 1))
        for i, n in enumerate(interval.buckets.get(metric, ())):
            total.buckets[i] += n
        total.count += d.count
        total.sum += d.count * (d.mean or 0.0) / 1e3

    def _tokens(self, at: Labels, interval: Interval, kind: str, n: int) -> None:
        labels = (*self._semantic(at, interval.target, "gen_ai_"), ("gen_ai_token_type", kind))
        total = self._histograms["gen_ai_client_token_usage"].setdefault(labels, Distribution(1))
        total.count += interval.requests.ok
        total.buckets[0] += interval.requests.ok
        total.sum += n

    def _semantic(self, at: Labels, target: str, family: str) -> Labels:
        if not family.startswith("gen_ai_"):
            return at
        provider, model = self._models.get(target, ("", ""))
        named = (
            ("gen_ai_operation_name", "chat"),
            ("gen_ai_provider_name", provider),
            ("gen_ai_request_model", model),
        )
        return (*at, *named)

    def page(self) -> str:
        """The whole page."""
        families: Families = {}
        for name, series in self._counters.items():
            lines = [_sample(name, labels, value) for labels, value in sorted(series.items())]
            families[name] = ("counter", HELP.get(name, name), lines)
        for metric, (name, text) in HISTOGRAMS.items():
            bounds = [f"{bound / 1e3:.10g}" for bound in BUCKETS[metric]]
            lines = [
                line for labels, d in self._histograms[name].items() for line in _histogram(name, labels, d, bounds)
            ]
            families[name] = ("histogram", text, lines)
        usage = self._histograms["gen_ai_client_token_usage"]
        lines = [line for labels, d in usage.items() for line in _histogram("gen_ai_client_token_usage", labels, d, [])]
        families["gen_ai_client_token_usage"] = ("histogram", "Tokens of successful requests, sum and count.", lines)
        if self._last is not None:
            _add_gauges(families, self._last, self._name)
        return "".join(_family(name, *family) for name, family in sorted(families.items()) if family[2])


HELP: Final = {
    "lens_requests_total": "Requests that ended, by outcome.",
    "lens_requests_unsent_total": "Slots of the schedule that were not sent, by reason.",
    "lens_requests_sent_total": "Requests that were sent.",
    "lens_cost_usd_total": "Cost of the requests whose price is known, USD.",
    "lens_tokens_total": "Tokens of successful requests as the provider counts them, by type.",
}


def _add_gauges(families: Families, tick: Snapshot, name: str) -> None:
    def gauge(family: str, text: str, lines: list[str]) -> None:
        families[family] = ("gauge", text, lines)

    run = (("run", tick.run), ("name", name))
    gauge("lens_run_info", "Which run this is.", [_sample("lens_run_info", run, 1)])
    gauge("lens_run_tick", "Ticks told so far.", [_sample("lens_run_tick", (), tick.tick)])
    elapsed = [_sample("lens_run_elapsed_seconds", (), tick.elapsed_s)]
    gauge("lens_run_elapsed_seconds", "Since the run's start.", elapsed)
    gauge("lens_run_done", "1 once the run has ended.", [_sample("lens_run_done", (), float(tick.state == "done"))])
    in_flight: list[str] = []
    latency: list[str] = []
    for interval in tick.intervals:
        at: Labels = (("target", interval.target), ("phase", interval.phase))
        in_flight.append(_sample("lens_requests_in_flight", at, interval.in_flight))
        latency += _tick_latency(interval, at)
    gauge("lens_requests_in_flight", "Requests under way.", in_flight)
    gauge("lens_tick_latency_seconds", "Percentiles of the last tick, from HDR histograms.", latency)
    _add_client(families, tick.client)
    _add_servers(families, tick)


def _add_servers(families: Families, tick: Snapshot) -> None:
    """What the targets' own pages say, as gauges: also their totals, which start anew with the server, not with us."""
    for field, (name, text) in SERVER_GAUGES.items():
        told = {target: getattr(server, field) for target, server in tick.servers.items()}
        lines = [_sample(name, (("target", target),), value) for target, value in told.items() if value is not None]
        families[name] = ("gauge", text, lines)


def _tick_latency(interval: Interval, at: Labels) -> Iterator[str]:
    for metric, d in interval.metrics.items():
        if d.count and metric.endswith("_ms"):
            for field, quantile in QUANTILES:
                value = getattr(d, field)
                if value is not None:
                    labels = (*at, ("metric", metric.removesuffix("_ms")), ("level", quantile))
                    yield _sample("lens_tick_latency_seconds", labels, value / 1e3)


def _add_client(families: Families, client: Client) -> None:
    workers = [_sample("lens_client_workers", (), client.workers)]
    families["lens_client_workers"] = ("gauge", "Worker processes.", workers)
    for field, name, scale in CLIENT_GAUGES:
        value = getattr(client, field)
        lines = [] if value is None else [_sample(name, (), value * scale)]
        families[name] = ("gauge", f"Health of the measuring client: {field}.", lines)
    lag = [(q, getattr(client.loop_lag_us, f)) for f, q in (("p50", "0.5"), ("p99", "0.99"), ("max", "1"))]
    name = "lens_client_loop_lag_seconds"
    lines = [_sample(name, (("level", q),), v / 1e6) for q, v in lag if v is not None]
    families[name] = ("gauge", "Kernel stamp to user read.", lines)
    for field in CLIENT_COUNTERS:
        value = getattr(client, field)
        name = f"lens_client_{field}_total"
        lines = [] if value is None else [_sample(name, (), value)]
        families[name] = ("counter", f"Health of the measuring client: {field}.", lines)


def _family(name: str, kind: str, text: str, lines: list[str]) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(f"{line}\n" for line in lines)


def _histogram(name: str, labels: Labels, d: Distribution, bounds: list[str]) -> Iterator[str]:
    running = 0
    for bound, n in zip(bounds, d.buckets, strict=False):
        running += n
        yield _sample(f"{name}_bucket", (*labels, ("le", bound)), running)
    yield _sample(f"{name}_bucket", (*labels, ("le", "+Inf")), d.count)
    yield _sample(f"{name}_sum", labels, d.sum)
    yield _sample(f"{name}_count", labels, d.count)


def _sample(name: str, labels: Labels, value: float) -> str:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    number = f"{value:d}" if isinstance(value, int) else f"{value:.12g}"
    return f"{name}{{{told}}} {number}" if told else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def address_of(export: Export) -> tuple[str, int]:
    """Host and port of `prometheus://[HOST][:PORT]`; loopback and 9464 where they are missing. Raises PlanError."""
    url = export.url.value or "prometheus://"
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        return parts.hostname or "127.0.0.1", PORT if parts.port is None else parts.port
    except ValueError:
        raise PlanError(f"prometheus: no port in {url!r}; write prometheus://127.0.0.1:{PORT}") from None


class Prometheus(Destination):
    """Serves the page from a thread with its own event loop. A Destination: `write` adds ticks to the sums."""

    keeps_cursor = False  # the sums live in memory

    def __init__(self, export: Export, *, name: str, models: Mapping[str, tuple[str, str]]) -> None:
        self.host, self.port = address_of(export)
        self.name = f"Prometheus page on {self.host}:{self.port}"
        self._models, self._plan_name = models, name
        self._totals = Totals(models, name)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._fresh = False  # ticks came since the last scrape
        self._scraped = threading.Event()
        self.scrapes = 0

    def start(self) -> Prometheus:
        """Listens. Raises OutputError if the port is taken."""
        self._thread = threading.Thread(target=self._serve, name="prometheus", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise OutputError(
                f"{self.name} cannot listen ({self._failure.strerror}); give another port: prometheus://:PORT"
            )
        return self

    def write(self, ticks: list[Snapshot]) -> None:
        with self._lock:
            for tick in ticks:
                self._totals.add(tick)
            self._fresh = True
            self._scraped.clear()

    def restart(self) -> None:
        with self._lock:
            self._totals = Totals(self._models, self._plan_name)

    def linger(self, limit_s: float) -> None:
        """After the last tick: waits until it was scraped, if anybody scrapes at all, at most `limit_s`."""
        if self.scrapes and self._fresh:
            self._scraped.wait(limit_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _serve(self) -> None:
        from aiohttp import web

        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        try:
            self._loop.run_until_complete(self._listen(runner))
            self._started.set()
            self._loop.run_forever()
        except OSError as error:
            self._failure = error
        finally:
            self._loop.run_until_complete(runner.cleanup())
            self._loop.close()
            self._started.set()

    async def _listen(self, runner: web.AppRunner) -> None:
        from aiohttp import web

        await runner.setup()
        await web.TCPSite(runner, self.host, self.port).start()
        self.port = runner.addresses[0][1]

    async def _metrics(self, _: web.Request) -> web.Response:
        from aiohttp import web

        with self._lock:
            text = self._totals.page()
            self._fresh = False
        self.scrapes += 1
        self._scraped.set()
        return web.Response(body=text.encode(), headers={"Content-Type": f"{CONTENT_TYPE}; charset=utf-8"})

    async def _healthz(self, _: web.Request) -> web.Response:
        from aiohttp import web

        with self._lock:
            last = self._totals._last
        told = {"status": "ok", "tick": last.tick if last else None, "state": last.state if last else "starting"}
        return web.json_response(told)
