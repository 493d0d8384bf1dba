"""What is made of a run's numbers: files, pages, the console, and the databases of EXPORTERS. Reads run directories and
snapshots, imports collectors and engine; nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from ..engine.plan.plan import Export
    from .spool.tail import Destination

# (export, name of the plan, provider and model of each target) -> the destination, its library loaded
Maker: TypeAlias = "Callable[[Export, str, Mapping[str, tuple[str, str]]], Destination]"


def _influxdb(export: Export, name: str, _: Mapping[str, tuple[str, str]]) -> Destination:
    from .influxdb import InfluxDB

    return InfluxDB(export, name=name)


def _prometheus(export: Export, name: str, models: Mapping[str, tuple[str, str]]) -> Destination:
    from .prometheus import Prometheus

    return Prometheus(export, name=name, models=models).start()


def _otlp(export: Export, name: str, models: Mapping[str, tuple[str, str]]) -> Destination:
    from .otlp import Otlp

    return Otlp(export, name=name, models=models)


# By the plan's name of the export; each loads its library when it is made, and opens no connection but a page's port.
EXPORTERS: Final[dict[str, Maker]] = {"influxdb": _influxdb, "prometheus": _prometheus, "otlp": _otlp}
