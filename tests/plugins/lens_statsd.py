"""An example of an exporter in a package of its own: counters and timings as StatsD datagrams."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from llm_latency_lens import Destination, PlanError, PluginExport, Snapshot


class StatsD(Destination[Snapshot]):
    """Sends each tick's sums to `statsd://HOST:PORT`; the entry point names this class."""

    def __init__(self, export: PluginExport, *, name: str, models: Mapping[str, tuple[str, str]]) -> None:
        parts = urlsplit(export.url.value)
        if not parts.hostname or not parts.port:
            raise PlanError("statsd: the URL must read statsd://HOST:PORT")
        self._address = parts.hostname, parts.port
        self._prefix = export.options.get("prefix", "lens")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.name = f"StatsD at {parts.hostname}:{parts.port}"

    def write(self, ticks: list[Snapshot]) -> None:
        for tick in ticks:
            ok = sum(interval.requests.ok for interval in tick.intervals)
            self._socket.sendto(f"{self._prefix}.ok:{ok}|c".encode(), self._address)

    def close(self) -> None:
        self._socket.close()
