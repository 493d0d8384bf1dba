"""The collector: takes what its source has into the totals, closes a tick when it is over, makes both safe, then releases.

The source is the rings of this machine's workers (collectors.rings), or, in the driver of a run of several hosts, the
ticks of their collectors (collectors.hosts). Every turn (50 ms) it is read. Every tick, in this order:

    close the tick -> sinks (files) -> checkpoint -> release what the source kept (rings, segments) -> report.json

A SIGKILL between any two of them loses nothing and counts nothing twice: the next collector loads the checkpoint, cuts
the files back to where they were then, and reads the rings again from there. A tick that is written again has the
same number and time. It reads from run.json when the phases began and that the run is over; it never writes there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..engine.files import replace
from ..engine.records.layout import Counter
from ..engine.runs.manifest import FILE as MANIFEST
from ..engine.runs.manifest import Manifest, read_manifest
from .batches import Reader
from .blocked import Blocked
from .calibration.result import Calibration
from .checkpoint import FILE as CHECKPOINT
from .checkpoint import Checkpoint, Progress
from .cost import Prices
from .health import Moment, client_of_run, client_of_tick, count_ticks, limited_ticks, observe
from .hosts.merged import Hosts
from .report import Losses, ReportBuilder, RunView, phase_at
from .rings import Rings
from .rollup import PICO_PER_USD
from .self_checks import failed_checks
from .series import Batch, Series, Slab, Tally
from .server import Servers
from .slos import Slos, lines_of
from .snapshot import ENCODER, Client, Reason, Report, Snapshot
from .source import HostFacts, Source
from .time_parts import time_parts
from .totals import Totals

TURN_S: Final = 0.05
LATE_NS: Final = 10_000_000_000  # so long after the drain a server's counters are not those of the run's end any more
UNSAVED_MAX: Final = 100  # ticks kept for the checkpoint while tmpfs is full; after more it is written anew


class Sink(Protocol):
    """One file of the run directory. It never raises for a full or failing disk: it counts, and tries again later."""

    @property
    def failures(self) -> int:
        """Writes that failed, in this incarnation."""

    @property
    def dropped(self) -> int:
        """Request rows that will not be written, in this incarnation."""

    def rows(self, batch: Batch, manifest: Manifest) -> None:
        """Takes records in, in the order of their arrival here."""

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        """Takes a closed tick in. What came so far is in the file when it returns, if the disk allows it."""

    def position(self) -> list[int]:
        """Where the file stands: `rewind(position())` in a later incarnation makes it what it is now."""

    def rewind(self, position: list[int]) -> None: ...

    def close(self, report: Report) -> None:
        """The run is over."""


class Relay(Protocol):
    """Passes closed ticks on to the collector of another machine, once the checkpoint holds them."""

    def ticks(self, closed: Sequence[tuple[int, Slab]], moment: Moment, source: Source, state: Progress) -> None:
        """Takes them in, before the checkpoint."""

    def release(self, next_tick: int) -> None:
        """The checkpoint holds all ticks below this one; called also by a collector that starts from one."""


class Collector:
    """All state of one collector process. `turn` is one pass of the loop; `run` is the loop."""

    def __init__(
        self,
        segment_dir: Path,
        *,
        sinks: Sequence[Sink] = (),
        prices: Prices | None = None,
        slos: Slos | None = None,
        count_tokens: Callable[[str], int] | None = None,
        relay: Relay | None = None,
        calibration: Calibration | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.directory = segment_dir
        self.manifest = read_manifest(segment_dir)
        self.sinks = list(sinks)
        self.relay = relay
        self.problems = list(prices.problems) if prices else []
        self.clock = clock
        self.checkpoint = Checkpoint(segment_dir / CHECKPOINT)
        saved = self.checkpoint.load()
        self.state = saved.state if saved else Progress()
        self.servers = Servers(self.manifest.plan, self.state.servers)
        self.reader = Reader(len(self.manifest.plan.targets), prices=prices, lines=lines_of(self.manifest.plan))
        self.totals = Totals(self.reader, start_ns=0, tick_ns=self.manifest.plan.output.tick_ns)
        self.totals.next_tick = self.state.next_tick
        if saved is not None:
            self.totals.run, self.totals.ladders, self.totals.open = saved.totals, saved.ladders, saved.open
        self.builder = ReportBuilder(
            self.manifest.plan, price_date=prices.date if prices else None, slos=slos, calibration=calibration
        )
        self.source: Source = (
            Hosts(segment_dir, self.manifest, self.state, self.totals)
            if self.manifest.hosts
            else Rings(
                segment_dir,
                self.manifest,
                self.state,
                self.totals,
                fresh=saved is None,
                count_tokens=count_tokens,
                take_rows=self._take_rows,
            )
        )
        self._restore_sinks()
        self.writes = Blocked()
        self._before: Moment | None = None
        self._stamp = (0, 0)

    def _restore_sinks(self) -> None:
        """A collector that has no checkpoint starts its files anew."""
        self._failures_before = self.state.health.export_failures
        self._dropped_before = self.state.health.records_dropped
        positions = self.state.sinks or [[] for _ in self.sinks]
        for sink, position in zip(self.sinks, positions, strict=True):
            sink.rewind(position)
        if self.relay is not None:
            self.relay.release(self.totals.next_tick)

    def _take_rows(self, batch: Batch) -> None:
        with self.writes:
            for sink in self.sinks:
                sink.rows(batch, self.manifest)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Until the run is finished and everything is read; returns the final report."""
        while (report := self.turn()) is None:
            time.sleep(TURN_S)
        return report

    def turn(self) -> Report | None:
        """One pass. The final report, when the run is over and everything is in the totals.

        The manifest is read first: what a finished run has written is then there for this very drain.
        """
        self._read_manifest()
        now = self.clock()
        finished = self.manifest.state == "finished"
        if not self.totals.start_ns and not finished:
            return None
        self.servers.follow(self.manifest.phases, now)
        self.source.read(self.manifest, now)
        if finished and self.source.done:
            return self._finish(now)
        closing = self.source.closing(now) if self.totals.start_ns else 0
        if closing > 0:
            self._close_ticks(closing, now)
        return None

    def _read_manifest(self) -> None:
        """Only when it was replaced. A segment directory that somebody removed leaves the last manifest in force."""
        with suppress(FileNotFoundError):
            status = (self.directory / MANIFEST).stat()
            if (status.st_ino, status.st_mtime_ns) != self._stamp:
                self._stamp = (status.st_ino, status.st_mtime_ns)
                self.manifest = read_manifest(self.directory)
        self.totals.start_ns = self.manifest.phases[0].start_ns if self.manifest.phases else 0

    # --- a tick ---------------------------------------------------------------------------------------------------

    def _close_ticks(self, ticks: int, now: int, *, last: bool = False) -> Report:
        """Closes so many ticks and makes them safe. After a stall that is several; they share the moment's report."""
        moment = self.source.moment(now, self.writes.blocked_ns)
        observe(self.state.health, self._before, moment)
        self.source.look(self.totals.next_tick + ticks)
        closed = []
        for tick in range(self.totals.next_tick, self.totals.next_tick + ticks):
            issuing = None if last else phases_issuing(self.manifest, self.totals.end_of(tick))
            closed.append((tick, self.source.close(tick, issuing), self.totals.in_flight()))
        everything = self.totals.run.sums()
        client = self._client_of_tick(moment, everything)
        if self._before is not None and not last and self._measures_at(self.totals.next_tick):
            count_ticks(self.state.health, client, self._before.now_ns, moment.now_ns, ticks)
        report = self._report(moment, finished=last)
        snapshot: Snapshot | None = None
        servers = self.servers()
        until = [] if last else self.builder.judge.goals(self.totals)
        for tick, slab, in_flight in closed:
            snapshot = self.builder.snapshot(
                RunView(self.manifest, self.totals, now),
                tick,
                slab,
                state="done" if last and tick == closed[-1][0] else _tick_state(self.manifest.state),
                client=client,
                in_flight={} if last and tick == closed[-1][0] else in_flight,
                until=until,
            )
            snapshot.servers = servers
            with self.writes:
                for sink in self.sinks:
                    sink.tick(snapshot, report, slab, self.manifest)
        if self.relay is not None:
            self.relay.ticks([(tick, slab) for tick, slab, _ in closed], moment, self.source, self.state)
        self._save()
        self._before = moment
        self._show(report, snapshot)
        return report

    def _measures_at(self, tick: int) -> bool:
        phase = phase_at(self.manifest, self.totals.end_of(tick) - 1)
        return self.manifest.plan.phases[phase].measure

    def _client_of_tick(self, moment: Moment, everything: Series) -> Client:
        return client_of_tick(
            self._before,
            moment,
            everything,
            self.state.health,
            workers=self.manifest.workers,
            restarts=self.source.restarts,
        )

    def _report(self, moment: Moment, *, finished: bool) -> Report:
        self._count_failures()
        losses = Losses(
            gap_drops=moment.sum(Counter.GAP_DROPS),
            detail_drops=moment.sum(Counter.DETAIL_DROPS),
            clock_bracket_ns=max((c[Counter.CLOCK_BRACKET_NS] for c in moment.counters.values()), default=0) or None,
            overspent_usd=self._overspent_usd(),
            read_spans=tuple(self.state.health.read_spans),
            limited_spans=tuple(self.state.health.limited_spans),
            limited=limited_ticks(self.state.health),
            problems=(*self.problems, *self.source.problems),
            self_checks=self._self_checks() if finished else (),
            outages=tuple(self.source.outages),
            hosts=self.source.host_facts() if finished else HostFacts(),
        )
        view = RunView(self.manifest, self.totals, moment.now_ns)
        client = partial(
            client_of_run,
            moment,
            health=self.state.health,
            workers=self.manifest.workers,
            restarts=self.source.restarts,
        )
        report = self.builder.report(
            view, client_of=client, errors=self.source.errors, finished=finished, losses=losses
        )
        report.run.hosts = self.source.hosts(moment.now_ns, finished=finished)
        for target in report.targets:
            target.server = self.servers.window(target.name) if finished else None
            target.time = time_parts(target, proxied=target.name in self.manifest.proxied)
        return report

    def _self_checks(self) -> tuple[Reason, ...]:
        totals, phases = self.totals, {}
        for i, times in enumerate(self.manifest.phases):
            if self.manifest.plan.phases[i].measure and times.start_ns:
                series = totals.run.only(lambda key, i=i: key[0] == i)  # type: ignore[misc]
                phases[i] = (series, int(series.tally[Tally.LAST_END]) - times.start_ns)
        return failed_checks(totals.ladders, self.source.arrivals(), phases, totals.tick_ns)

    def _overspent_usd(self) -> float:
        budget = self.manifest.plan.limits.budget_usd
        if budget is None:
            return 0.0
        return max(0.0, float(self.totals.run.sums().tally[Tally.PICO_USD]) / PICO_PER_USD - budget)

    def _count_failures(self) -> None:
        health = self.state.health
        health.export_failures = self._failures_before + sum(sink.failures for sink in self.sinks)
        health.records_dropped = self._dropped_before + sum(sink.dropped for sink in self.sinks)

    def _save(self) -> None:
        """Checkpoint, then release. If tmpfs takes no more, nothing is released: the rings keep what is not safe."""
        self._count_failures()
        state = self.state
        state.next_tick = self.totals.next_tick
        # In the same checkpoint as the totals: files and sums go back to one moment, or a tick would be in one of them twice.
        state.sinks = [sink.position() for sink in self.sinks]
        self.source.save(state)
        state.servers = self.servers.windows
        try:
            totals = self.totals
            self.checkpoint.save(
                state, closed=totals.unsaved, totals=totals.run, ladders=totals.ladders, opened=totals.open
            )
        except OSError:
            self._failures_before += 1
            if len(totals.unsaved) > UNSAVED_MAX:
                totals.unsaved.clear()
                self.checkpoint.rebase_next()
            return
        # After the checkpoint, else a failed one would lose them; before the release, which makes them the only copy.
        totals.unsaved.clear()
        self.source.release()
        if self.relay is not None:
            self.relay.release(totals.next_tick)

    def _show(self, report: Report, snapshot: Snapshot | None) -> None:
        """For the console: complete files, replaced in one step. A console that misses one has lost nothing."""
        with suppress(OSError):
            replace(self.directory / "report.json", ENCODER.encode(report))
            if snapshot is not None:
                replace(self.directory / "snapshot.json", ENCODER.encode(snapshot))

    # --- the end --------------------------------------------------------------------------------------------------

    def _finish(self, now: int) -> Report:
        """Closes every tick up to now, also the one that runs, and writes the last report."""
        ended_ns = max((times.end_ns for times in self.manifest.phases), default=0)
        self.servers.finish(late=now - ended_ns > self.manifest.plan.limits.drain_ns + LATE_NS)
        ticks = 0
        if self.totals.start_ns and not self.state.done:
            newest = max(self.source.newest(now), min(self.totals.tick_at(now), self._last_tick()))
            ticks = newest + 1 - self.totals.next_tick
        if not self.state.done:  # the last line of intervals.jsonl says so, once
            ticks = max(1, ticks)
            self.source.fold(self.totals.next_tick + ticks - 1)
        self.state.done = True
        report = self._close_ticks(max(0, ticks), now, last=True)
        for sink in self.sinks:
            sink.close(report)
        self._count_failures()
        report.client.export_failures = self.state.health.export_failures
        report.client.records_dropped = self.state.health.records_dropped
        self._show(report, None)
        self.checkpoint.close()
        return report

    def _last_tick(self) -> int:
        """The tick in which the last phase stopped issuing: `lens recover` may come hours later."""
        return self.totals.tick_at(max((times.end_ns for times in self.manifest.phases), default=0))


def phases_issuing(manifest: Manifest, moment_ns: int) -> list[int]:
    """The phases that issue requests at this moment."""
    return [
        i
        for i, times in enumerate(manifest.phases)
        if 0 < times.start_ns < moment_ns and not 0 < times.end_ns < moment_ns
    ]


def _tick_state(state: str) -> str:
    return "draining" if state in ("draining", "finished") else "running"
