"""A run's ticks as Prometheus metric families, in the text format 0.0.4 or as protobuf with native histograms. Pure.

The page is a function of the ticks so far. OpenTelemetry's GenAI names where they exist (those of a client: a server's own
`gen_ai_server_*` are not for what a client measured), base units everywhere, `target` and `phase` on all but the client's:

    gen_ai_client_operation_duration_seconds                histogram  E2E of `ok` requests    } + gen_ai_operation_name,
    gen_ai_client_operation_time_to_first_chunk_seconds     histogram  TTFT                    } gen_ai_provider_name,
    gen_ai_client_operation_time_per_output_chunk_seconds   histogram  ITL, every known gap    } gen_ai_request_model
    gen_ai_client_token_usage                     histogram  sum and count, + gen_ai_token_type (input, output)
    lens_ttft_scheduled_seconds, lens_time_per_output_token_seconds, lens_tokens_per_event, lens_lateness_seconds,
    lens_client_lateness_seconds, lens_rtt_seconds, lens_server_ttft_seconds, lens_provider_time_seconds   histograms
    lens_requests_total{outcome}, lens_requests_sent_total, lens_requests_unsent_total{reason}, lens_cost_usd_total,
    lens_tokens_total{type}                                                                  counters
    lens_requests_in_flight                                                                  gauge
    lens_tick_latency_seconds{metric,level}    gauge: the exact percentiles of the last tick
    lens_result_{ttft,e2e,...}_seconds, lens_result_*_tokens_per_second, lens_result_cost_usd
                                              gauges, once the run has ended: {scope,target,phase,statistic,bound}
    lens_result_values, lens_result_n_eff                 gauges {scope,target,phase,metric}
    lens_verdict{state}, lens_verdict_reason{code,note}, lens_slo{expression,state}    gauges, once the run has ended:
                                              1 for the state that it is, 0 for the others
    lens_slo_value{expression,bound}                      gauge: what was measured, in the expression's metric's unit
    lens_run_info{run,name}, lens_run_phase{phase}, lens_run_tick, lens_run_elapsed_seconds, lens_run_done     gauges
    lens_client_limited_ticks_total{reason}    counter: ticks in which this client was limited (collectors.tick_health)
    lens_client_*, lens_server_*{target}       gauges and counters of engine.metrics.CLIENT and SERVER
    lens_client_loop_lag_seconds{level}                                                   gauge

`lens_result_*` have `scope` run, steady, phase or target, `statistic` mean, 0.5, ..., 0.999, and `bound` value, low or
high: the statistic and its 95 % interval. A bound that the sample cannot give has no sample.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..collectors.rollup import Slice
from ..collectors.snapshot import Client, Report, Snapshot
from ..collectors.tick_health import LIMITS
from ..engine.metrics import CLIENT, METRICS, PERCENTILES, SERVER, TOKEN_KINDS, Field
from ..engine.metrics import Metric as CatalogueMetric
from .advice import STATES
from .estimates import BaseUnit, estimates, parts
from .figures import SLO_STATES
from .genai import LABELS, Models, genai_of
from .prometheus_protobuf import Native, encoded

QUANTILES: Final = {name: f"{percent / 100:g}" for name, percent in PERCENTILES.items()}

Labels = tuple[str, ...]
Sample = tuple[Labels, float | None]
_AT: Final = ["target", "phase"]
_SEMANTIC: Final = [*LABELS]


class Page:
    """All ticks so far: `add` takes one in, `text` and `protobuf` render them. No lock, no clock, no socket.

    A prometheus_client collector: its registry renders what `collect` yields.
    """

    def __init__(self, models: Models, name: str) -> None:
        self._models = models
        self._name = name
        self._slices: dict[Labels, Slice] = {}  # by target and phase
        self._native: dict[tuple[Labels, str], Counter[int]] = {}  # by target and phase, and metric
        self._limited: Counter[str] = Counter({limit.code: 0 for limit in LIMITS})
        self.last: Snapshot | None = None
        self.summary: Report | None = None  # once the run is over
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add(self, tick: Snapshot) -> None:
        for interval in tick.intervals:
            at = interval.target, interval.phase
            self._slices.setdefault(at, Slice()).add(interval)
            for metric, counts in interval.native.items():
                self._native.setdefault((at, metric), Counter()).update(counts)
        self._limited.update(tick.client.limited_by.keys())
        self.last = tick

    def text(self) -> str:
        """The page, complete."""
        return generate_latest(self._registry).decode()

    def protobuf(self) -> bytes:
        """The same, with native histograms beside the classic ones where the ticks have them."""
        native: Native = {}
        for (at, metric), counts in self._native.items():
            if metric in METRICS:
                native.setdefault(METRICS[metric].prometheus, {})[self._labels(METRICS[metric], at)] = counts
        return encoded(self.collect(), native)

    def collect(self) -> Iterator[Metric]:
        """Every family that has a sample, sorted by name."""
        families = [*self._counters(), self._token_usage(), *self._latencies()]
        if self.last is not None:
            families += [*_run_gauges(self.last, self._name), *_client(self.last.client), *_servers(self.last)]
            text = "Ticks in which this client was limited, by reason."
            limited = [((code,), float(ticks)) for code, ticks in self._limited.items()]
            families.append(_counter("lens_client_limited_ticks", text, ["reason"], limited))
        if self.summary is not None:
            families += [*_summary(self.summary), *_judgement(self.summary)]
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
                    family.add_metric((*at, *genai_of(at[0], self._models), kind), [("+Inf", each.count("ok"))], tokens)
        return family

    def _latencies(self) -> Iterator[Metric]:
        for metric in METRICS.values():
            if metric.prometheus:
                labels = [*_AT, *_SEMANTIC] if _is_semantic(metric) else _AT
                family = HistogramMetricFamily(metric.prometheus, metric.help, labels=labels)
                for at, each in self._slices.items():
                    if metric.name in each.moments:
                        family.add_metric(self._labels(metric, at), _buckets(metric, each), _sum(metric, each))
                yield family

    def _labels(self, metric: CatalogueMetric, at: Labels) -> Labels:
        return (*at, *genai_of(at[0], self._models)) if _is_semantic(metric) else at


def _is_semantic(metric: CatalogueMetric) -> bool:
    """Whether it has a name of the GenAI conventions, which want operation, provider and model beside our own labels."""
    return metric.prometheus.startswith("gen_ai_")


def _buckets(metric: CatalogueMetric, each: Slice) -> list[tuple[str, float]]:
    """As prometheus_client takes them: bounds in the base unit, and how many values lie at or below each. Only the last
    one where the ticks are of a version with other bounds."""
    if metric.name not in each.buckets:
        return [("+Inf", each.moments[metric.name].count)]
    bounds = [*(f"{bound * metric.base_factor:.10g}" for bound in metric.buckets), "+Inf"]
    return list(zip(bounds, itertools.accumulate(each.buckets[metric.name]), strict=True))


def _sum(metric: CatalogueMetric, each: Slice) -> float:
    return each.moments[metric.name].sum / metric.scale * metric.base_factor


def _counter(name: str, text: str, labels: list[str], samples: Iterable[Sample]) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _gauge(name: str, text: str, labels: list[str], samples: Iterable[Sample]) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[Sample]) -> Metric:
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _run_gauges(tick: Snapshot, name: str) -> Iterator[Metric]:
    yield _gauge("lens_run_info", "Which run this is.", ["run", "name"], [((tick.run, name), 1)])
    yield _gauge("lens_run_tick", "The last tick.", [], [((), tick.tick)])
    yield _gauge("lens_run_elapsed_seconds", "Since the run's start.", [], [((), tick.elapsed_s)])
    yield _gauge("lens_run_done", "1 once the run has ended.", [], [((), float(tick.state == "done"))])
    yield _gauge("lens_run_phase", "The phase of the last tick.", ["phase"], [((tick.phase,), 1)])
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


def _judgement(report: Report) -> Iterator[Metric]:
    verdict = report.verdict
    states = [((state,), float(state == verdict.state)) for state in STATES]
    yield _gauge("lens_verdict", "1 for the verdict of the finished run.", ["state"], states)
    reasons = dict.fromkeys((reason.code, "yes" if reason.note else "no") for reason in verdict.reasons)
    text = "Why the verdict is what it is. A note does not invalidate."
    yield _gauge("lens_verdict_reason", text, ["code", "note"], [(each, 1.0) for each in reasons])
    slos = {slo.expression: slo for slo in report.slo}.values()
    held = [((slo.expression, state), float(state == slo.state)) for slo in slos for state in SLO_STATES]
    yield _gauge("lens_slo", "1 for the state of each SLO of the finished run.", ["expression", "state"], held)
    values = [
        ((slo.expression, bound), value)
        for slo in slos
        for bound, value in zip(("value", "low", "high"), (slo.value, *(slo.ci95 or (None, None))), strict=True)
    ]
    text = "What was measured for each SLO, with its 95 % interval, in the unit of its metric."
    yield _gauge("lens_slo_value", text, ["expression", "bound"], values)


def _servers(tick: Snapshot) -> Iterator[Metric]:
    for name, field in SERVER.items():
        samples = [((target,), getattr(server, name)) for target, server in tick.servers.items()]
        yield _field(field, ["target"], samples)


def _client(client: Client) -> Iterator[Metric]:
    for name, field in CLIENT.items():
        yield _field(field, [], [((), getattr(client, name))])
    lag = client.loop_lag_us
    levels = [(("0.5",), lag.p50), (("0.99",), lag.p99), (("1",), lag.max)]
    samples = [(level, None if us is None else us / 1e6) for level, us in levels]
    yield _gauge("lens_client_loop_lag_seconds", "Kernel stamp to user read.", ["level"], samples)


def _field(field: Field, labels: list[str], samples: Iterable[tuple[Labels, float | None]]) -> Metric:
    family = _counter if field.counter else _gauge
    scaled = [(values, None if value is None else value * field.scale) for values, value in samples]
    return family(field.prometheus, field.help, labels, scaled)
