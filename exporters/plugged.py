"""An exporter of another package (entry points `llm_latency_lens.exporters`): `export: {plugin: {name: NAME, ...}}`.

The entry point names a callable, `make(export, name=..., models=...)`, that returns a `Destination`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ..collectors.snapshot import Report, Snapshot
from ..engine.errors import LensError
from ..engine.installed import Plugin, plugin_of, raised
from ..engine.plan.plan import PluginExport
from .spool.tail import Destination, Unavailable

ATTRIBUTES: Final = ("name", "keeps_cursor", "check", "write", "end", "restart", "linger", "close")


class PluggedDestination(Destination[Snapshot]):
    """A `Destination` around another package's: an exception that is none of `Destination`'s is a failure to deliver,
    tried again as any other, so that the ticks wait on disk until somebody has repaired the package."""

    def __init__(self, plugin: Plugin, destination: Destination[Snapshot]) -> None:
        self._plugin = plugin
        self._destination = destination
        self.name = destination.name
        self.keeps_cursor = destination.keeps_cursor

    def check(self, run: str) -> None:
        """Raises PlanError for a mistake of the package."""
        try:
            self._destination.check(run)
        except (LensError, Unavailable):
            raise
        except Exception as error:
            raise self._plugin.error(raised("check()", error)) from error

    def write(self, ticks: list[Snapshot]) -> None:
        with self._delivering("write()"):
            self._destination.write(ticks)

    def end(self, report: Report) -> None:
        with self._delivering("end()"):
            self._destination.end(report)

    @contextmanager
    def _delivering(self, where: str) -> Iterator[None]:
        try:
            yield
        except (LensError, Unavailable):
            raise
        except Exception as error:
            raise Unavailable(str(self._plugin.error(raised(where, error)))) from error

    def restart(self) -> None:
        self._destination.restart()

    def linger(self, limit_s: float) -> None:
        self._destination.linger(limit_s)

    def close(self) -> None:
        self._destination.close()


def plugged_destination(
    export: PluginExport, *, name: str, models: Mapping[str, tuple[str, str]]
) -> PluggedDestination:
    """The installed exporter that the plan names. Raises PlanError."""
    plugin = plugin_of("exporter", export.name)
    try:
        destination = plugin.made(export, name=name, models=models)
    except LensError:
        raise
    except Exception as error:
        raise plugin.error(raised("its constructor", error)) from error
    if missing := [attribute for attribute in ATTRIBUTES if not hasattr(destination, attribute)]:
        raise plugin.error(f"is no exporter: it has no {', no '.join(missing)}; derive it from Destination")
    return PluggedDestination(plugin, destination)
