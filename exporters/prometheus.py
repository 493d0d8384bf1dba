"""A run's ticks as a Prometheus page: `/metrics` and `/healthz`, on loopback unless the plan says otherwise.

A scrape reads sums in memory (exporters.prometheus_page) and can hold up nothing but itself. One that asks for protobuf
gets native histograms beside the classic ones, every other one the text format 0.0.4.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..collectors.snapshot import Report, Snapshot
from ..engine.errors import OutputError, PlanError
from ..engine.plan.plan import PrometheusExport
from .genai import Models
from .prometheus_page import Page
from .prometheus_protobuf import CONTENT_TYPE as PROTOBUF
from .prometheus_protobuf import is_preferred
from .spool.tail import Destination

if TYPE_CHECKING:
    from aiohttp import web

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
PORT: Final = 9464


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

    def __init__(self, export: PrometheusExport, *, name: str, models: Models) -> None:
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

    async def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        protobuf = is_preferred(request.headers.getall("Accept", []))
        with self._lock:
            body = self._page.protobuf() if protobuf else self._page.text().encode()
            self._fresh = False
        self.scrapes += 1
        self._scraped.set()
        return web.Response(body=body, headers={"Content-Type": PROTOBUF if protobuf else TEXT, "Vary": "Accept"})

    async def _healthz(self, _: web.Request) -> web.Response:
        from aiohttp import web

        with self._lock:
            last = self._page.last
        health = {"status": "ok", "tick": last.tick if last else None, "state": last.state if last else "starting"}
        return web.json_response(health)
