"""What is made of a run's numbers: files, pages, the console, and the plan's exports to databases. Reads run directories
and snapshots, imports collectors and engine; nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..engine.plan.plan import Export, InfluxExport, OtlpExport, PluginExport, PrometheusExport

if TYPE_CHECKING:
    from ..collectors.snapshot import Snapshot
    from .span_log import SpanRow
    from .spool.tail import Destination


def destination_of(export: Export, *, name: str, models: Mapping[str, tuple[str, str]]) -> Destination[Snapshot]:
    """The exporter of one entry of a plan; `models` are provider and model of each target. Raises LensError.

    Loads its library only now (InfluxDB's takes 0.9 s), and opens no connection but a page's port.
    """
    if isinstance(export, InfluxExport):
        from .influxdb import InfluxDB

        return InfluxDB(export, name=name)
    if isinstance(export, PrometheusExport):
        from .prometheus import Prometheus

        return Prometheus(export, name=name, models=models).start()
    if isinstance(export, PluginExport):
        from .plugged import plugged_destination

        return plugged_destination(export, name=name, models=models)
    from .otlp import Otlp

    return Otlp(export, name=name, models=models)


def span_destination_of(
    export: OtlpExport, *, name: str, models: Mapping[str, tuple[str, str]]
) -> Destination[SpanRow]:
    """Where an OTLP export's spans go, beside its metrics. Raises LensError."""
    from .otlp_spans import OtlpSpans

    return OtlpSpans(export, name=name, models=models)
