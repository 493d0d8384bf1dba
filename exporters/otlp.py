"""A run's ticks pushed as OTLP metrics over HTTP (the extra `llm-latency-lens[otlp]`).

In delta temporality: histograms with the names of the GenAI conventions, `gen_ai.client.operation.duration`,
`.time_to_first_chunk` (TTFT: the first chunk with a token), `.time_per_output_chunk` (every known gap between token
events) and `gen_ai.client.token.usage` (count and sum only), and our own as engine.metrics names them; sums
`lens.requests` {outcome}, `lens.tokens` {type}, `lens.cost` (USD) and `lens.client.limited_ticks` {reason}. Cumulative:
the counters of `lens.client.*` and `lens.server.*`. Gauges: the rest of these, `lens.requests.in_flight`.

When the run has ended, gauges with its statistics and their 95 % intervals: `lens.result.ttft` {scope, target, phase,
statistic, bound} and so on, `bound` being value, low or high, and `lens.result.values` and `lens.result.n_eff` {scope,
target, phase, metric}; `lens.verdict` {state}, `lens.verdict.reason` {code, note} and `lens.slo` {expression, state}, each
1 for what holds, and `lens.slo.value` {expression, bound}.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from ..collectors.rollup import Slice
from ..collectors.snapshot import Interval, Report, Snapshot
from ..engine.errors import PlanError
from ..engine.installed import missing_extra
from ..engine.metrics import CLIENT, METRICS, SERVER, TOKEN_KINDS, Field
from ..engine.metrics import Metric as CatalogueMetric
from ..engine.plan.plan import OtlpExport
from .estimates import BaseUnit, estimates, parts, span_ns
from .genai import Models, genai_of
from .spool.tail import Destination, Unavailable

TIMEOUT_S: Final = 10
CONNECT_S: Final = 3.0


def endpoint_of(export: OtlpExport) -> str:
    """`otlp://HOST[:PORT]` is http on port 4318 with the standard path; http(s) URLs are taken as they are."""
    parts = urlsplit(export.url.value)
    if parts.scheme in ("http", "https"):
        return export.url.value
    if parts.scheme in ("otlp", "otlps") and parts.hostname:
        host = parts.netloc if parts.port else f"{parts.netloc}:4318"
        return f"{'https' if parts.scheme == 'otlps' else 'http'}://{host}{parts.path.rstrip('/') or '/v1/metrics'}"
    raise PlanError("otlp: the URL must read otlp://HOST[:PORT] or http(s)://HOST:PORT/v1/metrics")


class OtlpConnection:
    """What metrics and spans share of a way to a collector: its address, its headers, and who sends. Raises PlanError where
    the extra is not installed."""

    def __init__(self, export: OtlpExport, endpoint: str, *, what: str, name: str) -> None:
        try:
            import opentelemetry.exporter.otlp.proto.http  # noqa: F401  # the other package of the extra
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise missing_extra("otlp", "an export to OpenTelemetry") from None
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # failures are reported by the Pump, once
        parts = urlsplit(endpoint)
        self.host, self.port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self.name = f"{what} at {self.host}:{self.port}"
        headers = {name: value.value for name, value in export.headers.items()}
        self.options: dict[str, Any] = {"endpoint": endpoint, "headers": headers, "timeout": TIMEOUT_S}
        self.resource = Resource({"service.name": "llm-latency-lens", "lens.plan": name})
        self.scope = InstrumentationScope("llm_latency_lens")

    def check(self, run: str) -> None:
        """Raises Unavailable with the reason when nothing listens there: the library says only that it failed."""
        try:
            socket.create_connection((self.host, self.port), timeout=CONNECT_S).close()
        except OSError as error:
            raise Unavailable(f"cannot be reached: {error.strerror or error}") from None


class Otlp(OtlpConnection, Destination[Snapshot]):
    """Pushes ticks with OpenTelemetry's own exporter."""

    def __init__(self, export: OtlpExport, *, name: str, models: Models) -> None:
        super().__init__(export, endpoint_of(export), what="OTLP", name=name)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._models = models
        self._exporter = OTLPMetricExporter(**self.options)

    def write(self, ticks: list[Snapshot]) -> None:
        self._push(metric for tick in ticks for metric in self._metrics(tick))

    def end(self, report: Report) -> None:
        self._push(self._summary(report))

    def _push(self, made: Iterable[Any]) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics

        metrics: dict[str, Any] = {}
        for metric in made:
            known = metrics.setdefault(metric.name, metric)
            if known is not metric:
                known.data.data_points.extend(metric.data.data_points)
        scope = ScopeMetrics(self.scope, list(metrics.values()), "")
        result = self._exporter.export(MetricsData([ResourceMetrics(self.resource, [scope], "")]))
        if result is not MetricExportResult.SUCCESS:
            self.check("")
            raise Unavailable("did not take the metrics; its log says why")

    def close(self) -> None:
        self._exporter.shutdown()

    def _metrics(self, tick: Snapshot) -> Iterator[Any]:
        from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, Sum

        delta = AggregationTemporality.DELTA
        span = (tick.wall_time_ns - round(tick.seconds * 1e9), tick.wall_time_ns)
        for metric in METRICS.values():
            if metric.otel:
                points = [p for i in tick.intervals if (p := self._histogram(i, metric, tick.run, span))]
                if points:
                    yield Metric(metric.otel, metric.help, BaseUnit.of(metric).ucum, Histogram(points, delta))
        points = [p for i in tick.intervals for p in self._token_usage(i, tick.run, span)]
        if points:
            yield Metric("gen_ai.client.token.usage", "Tokens of ok requests.", "{token}", Histogram(points, delta))
        sums: dict[str, tuple[str, list[Any]]] = {"lens.requests": ("{request}", []), "lens.tokens": ("{token}", [])}
        sums["lens.cost"] = ("USD", [])
        limited = [_number(1, {"run": tick.run, "reason": code}, span) for code in tick.client.limited_by]
        sums["lens.client.limited_ticks"] = ("{tick}", limited)
        flying = []
        for i in tick.intervals:
            at = self._attributes(i, tick.run)
            for outcome, n in {"ok": i.requests.ok, "cancelled": i.requests.cancelled, **i.requests.failed}.items():
                sums["lens.requests"][1].append(_number(n, {**at, "outcome": outcome}, span))
            for kind in TOKEN_KINDS:
                if (tokens := getattr(i.tokens, kind)) is not None:
                    sums["lens.tokens"][1].append(_number(tokens, {**at, "type": kind}, span))
            if i.cost.usd is not None:
                sums["lens.cost"][1].append(_number(i.cost.usd, at, span))
            flying.append(_number(i.in_flight, at, span))
        for name, (unit, points) in sums.items():
            if points:
                yield Metric(name, "", unit, Sum(points, delta, is_monotonic=True))
        if flying:
            yield Metric("lens.requests.in_flight", "", "{request}", Gauge(flying))
        began_ns = tick.wall_time_ns - round(tick.elapsed_s * 1e9)
        for name, field in CLIENT.items():
            if field.otel and (value := getattr(tick.client, name)) is not None:
                yield _health(f"lens.client.{name}", field, value, {"run": tick.run}, (began_ns, span[1]))
        for target, server in tick.servers.items():
            for name, field in SERVER.items():
                if (value := getattr(server, name)) is not None:
                    # 0: when the server began to count is not known
                    yield _health(
                        f"lens.server.{name}", field, value, {"run": tick.run, "target": target}, (0, span[1])
                    )

    def _summary(self, report: Report) -> Iterator[Any]:
        from opentelemetry.sdk.metrics.export import Gauge, Metric

        span = span_ns(report)
        for part in parts(report):
            at = {"run": report.run.id, "scope": part.scope, "target": part.target, "phase": part.phase}
            for name, d in part.metrics.items():
                if not d.count:
                    continue
                metric, unit = METRICS[name], BaseUnit.of(METRICS[name])
                points = [
                    _number(e.value * unit.factor, {**at, "statistic": e.statistic, "bound": e.bound}, span)
                    for e in estimates(d)
                ]
                yield Metric(f"lens.result.{unit.name}", metric.help, unit.ucum, Gauge(points))
                for field, value in (("values", d.count), ("n_eff", d.n_eff)):
                    if value is not None:
                        yield Metric(
                            f"lens.result.{field}", "", "1", Gauge([_number(value, {**at, "metric": name}, span)])
                        )

        yield from _judgement(report, span)

    def _token_usage(self, i: Interval, run: str, span: tuple[int, int]) -> Iterator[Any]:
        """What is known of the convention's histogram: count and sum of the requests that ended."""
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        for kind in ("input", "output"):
            tokens = Slice(counts=i.counts).tokens_ended(kind)
            if tokens is not None and i.requests.ok:
                yield HistogramDataPoint(
                    attributes={**self._attributes(i, run), "gen_ai.token.type": kind},
                    start_time_unix_nano=span[0],
                    time_unix_nano=span[1],
                    count=i.requests.ok,
                    sum=tokens,
                    bucket_counts=[i.requests.ok],
                    explicit_bounds=[],
                    min=None,  # type: ignore[arg-type]  # optional in the protocol, and not known
                    max=None,  # type: ignore[arg-type]
                )

    def _histogram(self, i: Interval, metric: CatalogueMetric, run: str, span: tuple[int, int]) -> Any:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        d, buckets = i.metrics.get(metric.name), i.buckets.get(metric.name, [])
        if d is None or not d.count:
            return None
        known = len(buckets) == len(metric.buckets) + 1  # else the ticks are of a version with other bounds
        return HistogramDataPoint(
            attributes=self._attributes(i, run),
            start_time_unix_nano=span[0],
            time_unix_nano=span[1],
            count=d.count,
            sum=d.count * (d.mean or 0.0) * metric.base_factor,
            bucket_counts=buckets if known else [d.count],
            explicit_bounds=[bound * metric.base_factor for bound in metric.buckets] if known else [],
            min=(d.min or 0.0) * metric.base_factor,
            max=(d.max or 0.0) * metric.base_factor,
        )

    def _attributes(self, i: Interval, run: str) -> dict[str, str]:
        named = genai_of(i.target, self._models).attributes
        return {"run": run, "target": i.target, "phase": i.phase, **named}


def _judgement(report: Report, span: tuple[int, int]) -> Iterator[Any]:
    from opentelemetry.sdk.metrics.export import Gauge, Metric

    def gauge(name: str, text: str, value: float, attributes: dict[str, str]) -> Any:
        return Metric(name, text, "1", Gauge([_number(value, {"run": report.run.id, **attributes}, span)]))

    yield gauge("lens.verdict", "1 for the verdict of the finished run.", 1, {"state": report.verdict.state})
    for reason in report.verdict.reasons:
        at = {"code": reason.code, "note": "yes" if reason.note else "no"}
        yield gauge("lens.verdict.reason", "Why the verdict is what it is. A note does not invalidate.", 1, at)
    for slo in report.slo:
        yield gauge("lens.slo", "1 for the state of each SLO.", 1, {"expression": slo.expression, "state": slo.state})
        for bound, value in zip(("value", "low", "high"), (slo.value, *(slo.ci95 or (None, None))), strict=True):
            if value is not None:
                at = {"expression": slo.expression, "bound": bound}
                yield gauge("lens.slo.value", "In the unit of its metric.", value, at)


def _health(name: str, field: Field, value: float, attributes: dict[str, str], span: tuple[int, int]) -> Any:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Metric, Sum

    points = [_number(value, attributes, span)]
    counter = field.counter
    return Metric(
        name,
        field.help,
        "1",
        Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True) if counter else Gauge(points),
    )


def _number(value: float, attributes: dict[str, str], span: tuple[int, int]) -> Any:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    return NumberDataPoint(attributes, span[0], span[1], value)
