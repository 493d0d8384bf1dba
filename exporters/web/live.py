"""The report page of a run that goes on: server-sent events (HTML standard, 9.2) from the ticks of its log.

`RunState` is what the page shows, `LivePage` serves it. Each tick makes a new version. A viewer that has the version
before gets the change, any other gets the state: what a slow viewer missed is never kept for it. A change is

    now        the numbers of the tick, as text, every time
    point      the last span of the charts (exporters.html.charts), once the span is complete
    sections   the words and tables of the page by the id of their element, with `point`

and a state has `charts` instead of `point`, and once the run has ended `requests`: it is sent to a viewer that comes or
falls behind, and to all when the spans were merged or the run has grown by a tenth. Both a span's length and that step
grow with the run, so that all but `now` (about 600 bytes a tick) comes to an amount that grows with the logarithm of the
run's length.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import ClientConnectionResetError, web

from ...collectors.snapshot import Interval, Report, Snapshot
from ...collectors.snapshot import Run as RunFacts
from ...engine import __version__
from ...engine.errors import LensError, OutputError
from ..figures import clock, count, money, rate, value
from ..html.charts import Charts, Point, charts_of, last_point
from ..html.curves import exact_curves, rough_curves
from ..html.markup import Markup, element, joined
from ..html.page import LiveParts, asset, page_of, sections_of
from ..html.requests import Pictures
from ..html.run import Run, ended_run, run_so_far
from ..html.timeline import LATENCIES, POINTS, Timeline
from ..rundir import damage_named, read_report
from ..spool.tail import Destination
from .guard import INTENT, guarded, html, prefix_of
from .listen import Listener
from .serving import Serving

STEP_TICKS: Final = 5  # between two states for everybody, at least
STEP_SHARE: Final = 10  # ... and at least a tenth of the run so far
SLOW_S: Final = 30.0  # a viewer that takes nothing for this long is disconnected, and comes back by itself
LINGER_S: Final = 2.0  # after the end, for viewers that have not got it yet
VIEWERS_MAX: Final = 64

Number = tuple[str, str, str]  # id, text, what it is


class Change(msgspec.Struct, omit_defaults=True):
    """One message; see the module's docstring."""

    version: int
    now: list[Number]
    ended: bool = False
    charts: Charts | None = None
    point: Point | None = None
    sections: dict[str, str] | None = None
    requests: list[Pictures] | None = None


class RunState:
    """What the page shows of one run, its ticks in at most `points` spans. No socket, no thread; the caller sees to it
    that only one thread is in here."""

    def __init__(self, run_dir: Path, name: str, *, points: int = POINTS) -> None:
        self.version = 0
        self.ended = False
        self._run_dir = run_dir
        self._unknown = Report(run=RunFacts(id=run_dir.name, name=name, version=__version__, started_at=""))
        self._last: Snapshot | None = None
        self._final: Run | None = None
        self._points = points
        self._timeline = Timeline(LATENCIES, points=points)
        self._next_step = 1  # ticks after which everybody gets the state
        self._targets: list[str] = []  # of the last state
        self._change: bytes | None = None
        self._made: tuple[int, bytes] = (-1, b"")  # the last state, by version

    def add(self, ticks: list[Snapshot], *, watched: bool) -> None:
        """Takes in the next ticks. Without viewers nothing is drawn."""
        merged = self._timeline.ticks_per_span
        for tick in ticks:
            self._timeline.add(tick)
        self._last = ticks[-1]
        self.version += 1
        self._change = None
        due = self._timeline.ticks >= self._next_step
        if due:
            self._next_step = self._timeline.ticks + max(STEP_TICKS, self._timeline.ticks // STEP_SHARE)
        if watched and len(ticks) == 1 and not due and merged == self._timeline.ticks_per_span:
            self._change = self._latest_change()

    def restart(self) -> None:
        """The log was rewound: its ticks come again from the start."""
        self._timeline = Timeline(LATENCIES, points=self._points)
        self._next_step = 1
        self._change = None

    def end(self, report: Report) -> None:
        """The run has its summary: from now on the page is its report. Raises OutputError."""
        with damage_named(self._run_dir):
            curves = exact_curves(self._run_dir, [target.name for target in report.targets])
            self._final = ended_run(self._run_dir, report, self._timeline, curves)
        self.version += 1
        self._change = None
        self.ended = True

    def message(self, seen: int) -> bytes:
        """What brings a viewer that has version `seen` to the present one."""
        if self._change is not None and seen == self.version - 1:
            return self._change
        if self._made[0] != self.version:
            run = self._run()
            change = Change(self.version, self._now(), self.ended, charts=charts_of([run]), sections=_sections(run))
            change.requests = [run.pictures] if run.pictures else None
            self._made = self.version, msgspec.json.encode(change)
        return self._made[1]

    def page(self, *, control: bool) -> str:
        """The page as it is now; its script asks for what follows."""
        script = Markup(f'<script data-version="{self.version}">{asset("live.js")}</script>')
        return page_of([self._run()], LiveParts(self._top(control=control), script))

    def _run(self) -> Run:
        if self._final is not None:
            return self._final
        run = run_so_far(self._run_dir, self._report(), self._timeline)
        self._targets = run.targets
        return run._replace(curves=rough_curves(self._timeline, run.targets))

    def _report(self) -> Report:
        try:
            return read_report(self._run_dir)
        except OutputError:  # before the first tick, or being replaced
            return self._unknown

    def _latest_change(self) -> bytes | None:
        """None where only a state can say it: a target has come that the charts do not have."""
        change = Change(self.version, self._now())
        if self._timeline.ticks % self._timeline.ticks_per_span == 0:
            run = run_so_far(self._run_dir, self._report(), self._timeline)
            if run.targets != self._targets:
                return None
            change.point = last_point(run)
            change.sections = _sections(run)
        return msgspec.json.encode(change)

    def _now(self) -> list[Number]:
        return list(numbers_of(self._last, self.ended))

    def _top(self, *, control: bool) -> Markup:
        facts = (
            Markup(f'<div class="fact"><b id="now-{each}">{joined([text])}</b><span>{what}</span></div>')
            for each, text, what in self._now()
        )
        button = Markup('<button id="stop" type="button" class="chip">Stop the run</button>') if control else ""
        state = Markup('<p class="small soft" id="live-state" role="status">live</p>')
        return element("div", element("div", *facts, classes="facts"), state, button, classes="card")


def _sections(run: Run) -> dict[str, str]:
    return {name: str(markup) for name, markup in sections_of([run]).items()}


def numbers_of(tick: Snapshot | None, ended: bool) -> Iterator[Number]:
    """The numbers above the report."""
    t = tick or Snapshot(
        run="", tick=-1, wall_time_ns=0, elapsed_s=0, seconds=1, state="starting", phase="", in_flight=0, sent_total=0,
        ok_total=0, failed_total=0, unsent_total=0, planned_total=None,
    )  # fmt: skip
    yield "state", "done" if ended else " ".join(filter(None, (t.state, t.phase))), "state"
    yield "elapsed", clock(t.elapsed_s), "elapsed"
    yield "ok", count(t.ok_total), "ok"
    yield "failed", count(t.failed_total), "failed"
    yield "in-flight", count(t.in_flight), "in flight"
    yield "requests", rate(_sum(t.intervals, "requests_per_s")), "requests/s"
    yield "tokens", rate(_sum(t.intervals, "output_tokens_per_s")), "output tokens/s"
    busiest = max(
        (i.metrics["ttft_ms"] for i in t.intervals if "ttft_ms" in i.metrics), key=lambda d: d.count, default=None
    )
    yield "ttft", value(busiest.p50 if busiest else None), "TTFT p50 ms, last tick"
    yield "cost", money(t.cost_usd_total), "cost"


def _sum(intervals: list[Interval], name: str) -> float:
    return sum(getattr(each.throughput, name) or 0 for each in intervals)


class LivePage(Destination[Snapshot]):
    """Serves the page of one run from a thread. A Destination: `write` takes the run's ticks.

    `stop` ends the run as Ctrl-C does; without it the page has no button. `close` closes the listening socket's copy of
    this process alone: a successor goes on with its own.
    """

    keeps_cursor = False  # the charts live in memory

    def __init__(self, listener: Listener, run_dir: Path, name: str, stop: Callable[[], None] | None = None) -> None:
        self.name = f"live page on {listener.host}:{listener.port}"
        self._listener = listener
        self._stop = stop
        self._stopped = False
        self._lock = threading.Lock()
        self._state = RunState(run_dir, name)
        self._viewers = 0
        self._gone = threading.Event()  # set while there is no viewer
        self._gone.set()
        self._next: asyncio.Event | None = None  # set when there is another version; made by the server's loop
        self._serving = Serving("live", self._app, lambda runner: web.SockSite(runner, listener.socket))

    def start(self) -> LivePage:
        self._serving.start()
        return self

    def write(self, ticks: list[Snapshot]) -> None:
        with self._lock:
            self._state.add(ticks, watched=self._viewers > 0)
        self._wake()

    def restart(self) -> None:
        with self._lock:
            self._state.restart()

    def end(self, report: Report) -> None:
        with self._lock:
            self._state.end(report)
        self._wake()

    def linger(self, limit_s: float) -> None:
        """Waits until every viewer has the end, at most LINGER_S."""
        self._gone.wait(min(limit_s, LINGER_S))

    def close(self) -> None:
        self._serving.close()

    def _wake(self) -> None:
        self._serving.loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        """Wakes the viewers that wait; the next version sets another event."""
        if self._next is not None:
            self._next.set()
        self._next = asyncio.Event()

    def _app(self) -> web.Application:
        app, prefix = guarded(self._listener), prefix_of(self._listener)
        app.router.add_get(f"{prefix}/", self._page)
        app.router.add_get(f"{prefix}/events", self._events)
        app.router.add_post(f"{prefix}/stop", self._on_stop)
        return app

    async def _page(self, _: web.Request) -> web.Response:
        with self._lock:
            try:
                return html(self._state.page(control=self._stop is not None))
            except LensError as error:
                return web.Response(status=500, text=f"{error}\n")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._viewers >= VIEWERS_MAX:
            return web.Response(status=503, text=f"{VIEWERS_MAX} viewers are connected; no more are served.\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._viewers += 1
        self._gone.clear()
        try:
            await response.prepare(request)
            await self._follow(response, _version(request))
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # its buffer is full: closing it in order would wait for it again
        except (ClientConnectionResetError, ConnectionError):
            pass  # the browser has gone
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._gone.set()
        return response

    async def _follow(self, response: web.StreamResponse, seen: int) -> None:
        """Sends what is new until the run has ended. While one viewer does not read, nothing waits for it but the one
        message in its buffer."""
        while True:
            if self._next is None:
                self._next = asyncio.Event()
            event = self._next
            with self._lock:
                version, ended = self._state.version, self._state.ended
                message = self._state.message(seen) if version != seen else b""
            if message:
                seen = version
                await asyncio.wait_for(response.write(b"data: " + message + b"\n\n"), SLOW_S)
            if ended:
                return
            await event.wait()

    async def _on_stop(self, request: web.Request) -> web.Response:
        if self._stop is None:
            return web.Response(status=403, text="The run was started without --live-control.\n")
        if request.headers.get(INTENT) != "stop":
            return web.Response(status=403, text=f"A request to stop needs the header {INTENT}: stop.\n")
        if not self._stopped:  # a second Ctrl-C would cancel what is in flight
            self._stopped = True
            self._stop()
        return web.Response(status=202, text="The run drains and reports.\n")


def _version(request: web.Request) -> int:
    """The version that the viewer has; -1, which is none, if it does not say."""
    text: Any = request.query.get("seen", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
