"""A run's requests as OTLP spans over HTTP (the extra `llm-latency-lens[otlp]`), with the names of the GenAI conventions.

One client span per sampled request, from its sending to its end, in the trace that its traceparent header named: a
server that traces puts its own spans below it. Sending the same spans again gives them the same ids.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from ..engine.plan.plan import OtlpExport
from .genai import Models, genai_of
from .otlp import OtlpConnection, endpoint_of
from .span_log import SpanRow
from .spool.tail import Destination, Unavailable

PATH: Final = "/v1/traces"
METRICS_PATH: Final = "/v1/metrics"


def traces_endpoint(export: OtlpExport) -> str:
    """Beside the metrics' endpoint: /v1/traces for /v1/metrics, and any other path with /v1/traces behind it."""
    parts = urlsplit(endpoint_of(export))
    path = parts.path.rstrip("/").removesuffix(METRICS_PATH) + PATH
    return urlunsplit(parts._replace(path=path))


class OtlpSpans(OtlpConnection, Destination[SpanRow]):
    """Pushes spans with OpenTelemetry's own exporter."""

    def __init__(self, export: OtlpExport, *, name: str, models: Models) -> None:
        super().__init__(export, traces_endpoint(export), what="OTLP spans", name=name)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._models = models
        self._exporter = OTLPSpanExporter(**self.options)

    def write(self, ticks: list[SpanRow]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter.export([self._span(row) for row in ticks]) is not SpanExportResult.SUCCESS:
            self.check("")
            raise Unavailable("did not take the spans; its log says why")

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the library's

    def _span(self, row: SpanRow) -> Any:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        named = genai_of(row.target, self._models)
        context = SpanContext(int(row.trace_id, 16), int(row.span_id, 16), False, TraceFlags(TraceFlags.SAMPLED))
        failed = row.outcome != "ok"
        return ReadableSpan(
            f"{named.operation} {named.model}".rstrip(),
            context=context,
            resource=self.resource,
            attributes=self._attributes(row),
            events=[Event(f"lens.{name}", timestamp=at) for name, at in row.marks.items()],
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, row.message or row.outcome) if failed else Status(StatusCode.UNSET),
            start_time=row.start_ns,
            end_time=row.end_ns,
            instrumentation_scope=self.scope,
        )

    def _attributes(self, row: SpanRow) -> dict[str, Any]:
        known: dict[str, Any] = {
            **genai_of(row.target, self._models).attributes,
            "gen_ai.response.id": row.request_id or None,
            "gen_ai.response.time_to_first_chunk": row.metrics["ttft_ms"] / 1e3 if "ttft_ms" in row.metrics else None,
            "gen_ai.response.finish_reasons": [row.finish] if row.finish else None,
            "gen_ai.usage.input_tokens": row.tokens.get("input_tokens"),
            "gen_ai.usage.output_tokens": row.tokens.get("output_tokens"),
            "gen_ai.usage.cache_read.input_tokens": row.tokens.get("cached_tokens"),
            "gen_ai.usage.reasoning.output_tokens": row.tokens.get("reasoning_tokens"),
            "http.response.status_code": row.http_status or None,
            "error.type": None if row.outcome == "ok" else row.outcome,
            "lens.run": row.run,
            "lens.phase": row.phase,
            "lens.target": row.target,
        }
        known |= {f"lens.{name}": value for name, value in row.metrics.items()}
        return {name: value for name, value in known.items() if value is not None}
