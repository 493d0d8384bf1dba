"""A run's ticks as a Prometheus page: `/metrics` (text format 0.0.4) and `/healthz`, on loopback unless the plan says otherwise.

`lens_result_*` have `scope` run, steady, phase or target, `statistic` mean, 0.5, ..., 0.999, and `bound` value, low or
high: the statistic and its 95 % interval. A bound that the sample cannot give has no sample.

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
    lens_result_{ttft,e2e,...}_seconds, lens_result_*_tokens_per_second, lens_result_cost_usd
                                              gauges, once the run has ended: {scope,target,phase,statistic,bound}
    lens_result_values, lens_result_n_eff                 gauges {scope,target,phase,metric}
    lens_run_info{run,name}, lens_run_tick, lens_run_elapsed_seconds, lens_run_done          gauges
    lens_client_{workers, cpu_utilisation_ratio, cpu_seconds_per_event, steal_ratio, rss_bytes, itl_coalesced_ratio},
    lens_client_loop_lag_seconds{level}                                                   gauges
    lens_client_{ring_drops, clock_steps, gc_pauses, restarts, collector_restarts, stale_resends, clamped,
    gaps_saturated, late_renders, burst_replies, empty_events, tcp_retransmits, export_failures, records_dropped}_total                                 counters
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..collectors.rollup import Slice
from ..collectors.snapshot import Client, Report, Snapshot
from ..engine.errors import OutputError, PlanError
from ..engine.metrics import CLIENT, METRICS, PERCENTILES, SERVER, TOKEN_KINDS
from ..engine.metrics import Metric as CatalogueMetric
from ..engine.plan.plan import PrometheusExport
from .estimates import BaseUnit, estimates, parts
from .spool.tail import Destination

if TYPE_CHECKING:
    from aiohttp import web

CONTENT_TYPE: Final = "text/plain; version=0.0.4"
PORT: Final = 9464
QUANTILES: Final = {name: f"{percent / 100:g}" for name, percent in PERCENTILES.items()}

Labels = tuple[str, ...]
_AT: Final = ["target", "phase"]
_SEMANTIC: Final = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]


class Page:
    """All ticks so far: `add` takes one in, `text` renders them. No lock, no clock, no socket.

    A prometheus_client collector: its registry renders what `collect` yields.
    """

    def __init__(self, models: Mapping[str, tuple[str, str]], name: str) -> None:
        self._models = models  # target -> provider, model
        self._name = name
        self._slices: dict[Labels, Slice] = {}  # by target and phase
        self.last: Snapshot | None = None
        self.summary: Report | None = None  # once the run is over
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add(self, tick: Snapshot) -> None:
        for interval in tick.intervals:
            self._slices.setdefault((interval.target, interval.phase), Slice()).add(interval)
        self.last = tick

    def text(self) -> str:
        """The page, complete."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Every family that has a sample, sorted by name."""
        families = [*self._counters(), self._token_usage(), *self._latencies()]
        if self.last is not None:
            families += [*_run_gauges(self.last, self._name), *_client(self.last.client), *_servers(self.last)]
        if self.summary is not None:
            families += _summary(self.summary)
        return iter(sorted((each for each in families if each.samples), key=lambda family: family.name))

    def _counters(self) -> Iterator[Metric]:
        slices = sorted(self._slices.items())
        outcomes = [((*at, name), n) for at, each in slices for name, n in each.outcomes.items()]
        yield _counter("lens_requests", "Requests that ended, by outcome.", [*_AT, "outcome"], outcomes)
        unsent = [((*at, name), n) for at, each in slices for name, n in each.unsent.items()]
        text = "Slots of the schedule that were not sent, by reason."
        yield _counter("lens_requests_unsent", text, [*_AT, "reason"], unsent)
        yield _counter("lens_requests_sent", "Requests that were sent.", _AT, [(at, each.sent) for at, each in slices])
        text = "Cost of the requests whose price is known, USD."
        yield _counter("lens_cost_usd", text, _AT, [(at, each.usd) for at, each in slices])
        tokens = [((*at, kind), each.tokens(kind)) for at, each in slices for kind in TOKEN_KINDS]
        text = "Tokens of successful requests as the provider counts them, by type."
        yield _counter("lens_tokens", text, [*_AT, "type"], tokens)

    def _token_usage(self) -> Metric:
        text, labels = "Tokens of successful requests, sum and count.", [*_AT, *_SEMANTIC, "gen_ai_token_type"]
        family = HistogramMetricFamily("gen_ai_client_token_usage", text, labels=labels)
        for at, each in self._slices.items():
            for kind in ("input", "output"):
                if (tokens := each.tokens_ended(kind)) is not None:
                    family.add_metric((*at, *self._model(at), kind), [("+Inf", each.count("ok"))], tokens)
        return family

    def _latencies(self) -> Iterator[Metric]:
        for metric in METRICS.values():
            if metric.prometheus:
                # OpenTelemetry's GenAI conventions want operation, provider and model beside our own labels.
                semantic = metric.prometheus.startswith("gen_ai_")
                labels = [*_AT, *_SEMANTIC] if semantic else _AT
                family = HistogramMetricFamily(metric.prometheus, metric.help, labels=labels)
                for at, each in self._slices.items():
                    if metric.name in each.moments:
                        values = (*at, *self._model(at)) if semantic else at
                        family.add_metric(values, _buckets(metric, each), _seconds(metric, each))
                yield family

    def _model(self, at: Labels) -> Labels:
        return ("chat", *self._models.get(at[0], ("", "")))


def _buckets(metric: CatalogueMetric, each: Slice) -> list[tuple[str, float]]:
    """As prometheus_client takes them: bounds in seconds, and how many values lie at or below each."""
    bounds = [*(f"{bound / 1e3:.10g}" for bound in metric.buckets), "+Inf"]
    return list(zip(bounds, itertools.accumulate(each.buckets[metric.name]), strict=True))


def _seconds(metric: CatalogueMetric, each: Slice) -> float:
    return each.moments[metric.name].sum / metric.scale / 1e3


def _counter(name: str, text: str, labels: list[str], samples: Iterable[tuple[Labels, float | None]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _gauge(name: str, text: str, labels: list[str], samples: Iterable[tuple[Labels, float | None]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _run_gauges(tick: Snapshot, name: str) -> Iterator[Metric]:
    yield _gauge("lens_run_info", "Which run this is.", ["run", "name"], [((tick.run, name), 1)])
    yield _gauge("lens_run_tick", "The last tick.", [], [((), tick.tick)])
    yield _gauge("lens_run_elapsed_seconds", "Since the run's start.", [], [((), tick.elapsed_s)])
    yield _gauge("lens_run_done", "1 once the run has ended.", [], [((), float(tick.state == "done"))])
    flying = [((i.target, i.phase), i.in_flight) for i in tick.intervals]
    yield _gauge("lens_requests_in_flight", "Requests under way.", _AT, flying)
    latency: list[tuple[Labels, float | None]] = [
        ((i.target, i.phase, metric.removesuffix("_ms"), level), None if value is None else value / 1e3)
        for i in tick.intervals
        for metric, d in i.metrics.items()
        if metric.endswith("_ms")
        for field, level in QUANTILES.items()
        for value in [getattr(d, field)]
    ]
    text = "Percentiles of the last tick, from HDR histograms."
    yield _gauge("lens_tick_latency_seconds", text, [*_AT, "metric", "level"], latency)


def _summary(report: Report) -> Iterator[Metric]:
    labels = ["scope", "target", "phase"]
    found = [
        ((part.scope, part.target, part.phase), metric, d)
        for part in parts(report)
        for metric, d in part.metrics.items()
        if d.count
    ]
    for name, metric in METRICS.items():
        unit = BaseUnit.of(metric)
        samples = [
            ((*at, QUANTILES.get(e.statistic, e.statistic), e.bound), e.value * unit.factor)
            for at, each, d in found
            if each == name
            for e in estimates(d)
        ]
        text = f"{metric.help} Of the finished run, with its 95 % interval."
        yield _gauge(f"lens_result_{unit.name}_{unit.suffix}", text, [*labels, "statistic", "bound"], samples)
    counts = [((*at, name), float(d.count)) for at, name, d in found]
    yield _gauge("lens_result_values", "Values of the finished run.", [*labels, "metric"], counts)
    text = "So many independent values would be as sure as those of the finished run."
    yield _gauge("lens_result_n_eff", text, [*labels, "metric"], [((*at, name), d.n_eff) for at, name, d in found])


def _servers(tick: Snapshot) -> Iterator[Metric]:
    for name, field in SERVER.items():
        samples = [((target,), getattr(server, name)) for target, server in tick.servers.items()]
        yield _gauge(field.prometheus, field.help, ["target"], samples)


def _client(client: Client) -> Iterator[Metric]:
    for name, field in CLIENT.items():
        value: float | None = getattr(client, name)
        if field.counter:
            yield CounterMetricFamily(field.prometheus, field.help, value=value)
        else:
            yield _gauge(field.prometheus, field.help, [], [((), None if value is None else value * field.scale)])
    lag = client.loop_lag_us
    levels = [(("0.5",), lag.p50), (("0.99",), lag.p99), (("1",), lag.max)]
    samples = [(level, None if us is None else us / 1e6) for level, us in levels]
    yield _gauge("lens_client_loop_lag_seconds", "Kernel stamp to user read.", ["level"], samples)


def address_of(export: PrometheusExport) -> tuple[str, int]:
    """Host and port of `prometheus://[HOST][:PORT]`; loopback and 9464 where they are missing. Raises PlanError."""
    url = export.url.value or "prometheus://"
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        return parts.hostname or "127.0.0.1", PORT if parts.port is None else parts.port
    except ValueError:
        raise PlanError(f"prometheus: no port in {url!r}; write prometheus://127.0.0.1:{PORT}") from None


class Prometheus(Destination[Snapshot]):
    """Serves the page from a thread with its own event loop. A Destination: `write` adds ticks to the sums."""

    keeps_cursor = False  # the sums live in memory

    def __init__(self, export: PrometheusExport, *, name: str, models: Mapping[str, tuple[str, str]]) -> None:
        self.host, self.port = address_of(export)
        self.name = f"Prometheus page on {self.host}:{self.port}"
        self._models, self._plan_name = models, name
        self._page = Page(models, name)
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
                self._page.add(tick)
            self._fresh = True
            self._scraped.clear()

    def end(self, report: Report) -> None:
        with self._lock:
            self._page.summary = report
            self._fresh = True
            self._scraped.clear()

    def restart(self) -> None:
        with self._lock:
            self._page = Page(self._models, self._plan_name)

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
            text = self._page.text()
            self._fresh = False
        self.scrapes += 1
        self._scraped.set()
        return web.Response(body=text.encode(), headers={"Content-Type": f"{CONTENT_TYPE}; charset=utf-8"})

    async def _healthz(self, _: web.Request) -> web.Response:
        from aiohttp import web

        with self._lock:
            last = self._page.last
        health = {"status": "ok", "tick": last.tick if last else None, "state": last.state if last else "starting"}
        return web.json_response(health)
