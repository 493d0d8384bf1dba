"""A run's ticks pushed as OTLP metrics over HTTP (the extra `llm-latency-lens[otlp]`), in delta temporality.

Histograms in s with the GenAI conventions' names (`gen_ai.server.time_to_first_token`,
`gen_ai.server.time_per_output_token`, `gen_ai.client.operation.duration`) and `lens.ttft_scheduled`,
`lens.inter_token_latency`, `lens.lateness`; sums `lens.requests` {outcome}, `lens.tokens` {type}, `lens.cost` (USD);
gauges `lens.requests.in_flight`, `lens.client.*` and `lens.server.*`. When the run has ended, gauges with its statistics
and their 95 % intervals: `lens.result.ttft` {scope, target, phase, statistic, bound} and so on, `bound` being value, low
or high, and `lens.result.values` and `lens.result.n_eff` {scope, target, phase, metric}.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from ..collectors.snapshot import Interval, Report, Snapshot
from ..engine.errors import PlanError
from ..engine.metrics import BUCKETS, CLIENT, METRICS, SERVER, TOKEN_KINDS
from ..engine.plan.plan import OtlpExport
from .estimates import BaseUnit, estimates, parts, span_ns
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


class Otlp(Destination[Snapshot]):
    """Pushes ticks with OpenTelemetry's own exporter."""

    def __init__(self, export: OtlpExport, *, name: str, models: Mapping[str, tuple[str, str]]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise PlanError("otlp needs an extra: pip install 'llm-latency-lens[otlp]'") from None
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # failures are reported by the Pump, once
        headers = {name: value.value for name, value in export.headers.items()}
        endpoint = endpoint_of(export)
        parts = urlsplit(endpoint)
        self._peer = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self.name = f"OTLP at {self._peer[0]}:{self._peer[1]}"
        self._models = models
        self._exporter = OTLPMetricExporter(endpoint=endpoint, headers=headers, timeout=TIMEOUT_S)
        self._resource = Resource({"service.name": "llm-latency-lens", "lens.plan": name})
        self._scope = InstrumentationScope("llm_latency_lens")

    def check(self, run: str) -> None:
        """Raises Unavailable with the reason when nothing listens there: the library says only that it failed."""
        try:
            socket.create_connection(self._peer, timeout=CONNECT_S).close()
        except OSError as error:
            raise Unavailable(f"cannot be reached: {error.strerror or error}") from None

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
        scope = ScopeMetrics(self._scope, list(metrics.values()), "")
        result = self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
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
                points = [p for i in tick.intervals if (p := self._histogram(i, metric.name, tick.run, span))]
                if points:
                    yield Metric(metric.otel, metric.help, "s", Histogram(points, delta))
        sums: dict[str, tuple[str, list[Any]]] = {"lens.requests": ("{request}", []), "lens.tokens": ("{token}", [])}
        sums["lens.cost"] = ("USD", [])
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
        for name, field in CLIENT.items():
            if field.otel and (value := getattr(tick.client, name)) is not None:
                yield Metric(f"lens.client.{name}", field.help, "1", Gauge([_number(value, {"run": tick.run}, span)]))
        for target, server in tick.servers.items():
            for name, field in SERVER.items():
                if (value := getattr(server, name)) is not None:
                    at = {"run": tick.run, "target": target}
                    yield Metric(f"lens.server.{name}", field.help, "1", Gauge([_number(value, at, span)]))

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

    def _histogram(self, i: Interval, metric: str, run: str, span: tuple[int, int]) -> Any:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        d, buckets = i.metrics.get(metric), i.buckets.get(metric)
        if d is None or not d.count:
            return None
        return HistogramDataPoint(
            attributes=self._attributes(i, run),
            start_time_unix_nano=span[0],
            time_unix_nano=span[1],
            count=d.count,
            sum=d.count * (d.mean or 0.0) / 1e3,
            bucket_counts=buckets or [d.count],
            explicit_bounds=[bound / 1e3 for bound in BUCKETS[metric]] if buckets else [],
            min=(d.min or 0.0) / 1e3,
            max=(d.max or 0.0) / 1e3,
        )

    def _attributes(self, i: Interval, run: str) -> dict[str, str]:
        provider, model = self._models.get(i.target, ("", ""))
        named = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider, "gen_ai.request.model": model}
        return {"run": run, "target": i.target, "phase": i.phase, **named}


def _number(value: float, attributes: dict[str, str], span: tuple[int, int]) -> Any:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    return NumberDataPoint(attributes, span[0], span[1], value)
