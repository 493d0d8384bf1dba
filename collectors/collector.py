"""The collector: drains all rings into the totals, closes a tick when it is over, makes both safe, then releases.

Every turn (50 ms): look for new segments, drain each, enter what was read. Every tick, in this order:

    close the tick -> sinks (files) -> checkpoint -> release the rings, remove ended segments -> report.json

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

import msgspec
import numpy as np
import numpy.typing as npt

from ..engine.files import replace
from ..engine.records.detail import Detail
from ..engine.records.layout import Counter
from ..engine.records.record import LOCAL_TOKENS, UNKNOWN, Outcome
from ..engine.records.tap_status import read_tap_status
from ..engine.runs.manifest import FILE as MANIFEST
from ..engine.runs.manifest import Manifest, read_manifest
from . import host
from .batches import Reader
from .blocked import Blocked
from .calibration.result import Calibration
from .checkpoint import FILE as CHECKPOINT
from .checkpoint import Checkpoint, Progress
from .conduct import ReplyComparison
from .cost import Prices
from .health import Moment, client_of_run, client_of_tick, count_ticks, limited_ticks, observe
from .intake import Drained, Intake
from .live import LiveTicks
from .report import Losses, ReportBuilder, RunView, phase_at
from .rollup import PICO_PER_USD
from .self_checks import Arrivals, failed_checks
from .series import NOBODY, Batch, Series, Slab, Tally
from .server import Servers
from .slos import Slos, lines_of
from .snapshot import ENCODER, Client, Reason, Report, Snapshot
from .time_parts import time_parts
from .totals import Totals

_detail_of = msgspec.msgpack.Decoder(Detail).decode
TURN_S: Final = 0.05
GRACE_NS: Final = 50_000_000  # a tick is closed this long after its end: its last records are on their way
DETAILS_KEPT: Final = 1 << 16  # that wait for their record: more than all rings hold at once
MESSAGE_CHARS: Final = 300
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
        calibration: Calibration | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.directory = segment_dir
        self.manifest = read_manifest(segment_dir)
        self.manifest.host = host.describe() | self.manifest.host
        self.sinks = list(sinks)
        self.count_tokens = count_tokens
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
        self.intake = Intake(segment_dir, self.state, sessions=self.manifest.plan.workload.kind == "sessions")
        self.live = LiveTicks(len(self.manifest.plan.targets), self.state)
        self.builder = ReportBuilder(
            self.manifest.plan, price_date=prices.date if prices else None, slos=slos, calibration=calibration
        )
        self.comparison = ReplyComparison(self.manifest.plan.phases)
        self.arrivals = Arrivals(self.manifest.plan) if saved is None else None
        self.errors = {(t, o): (message, status) for t, o, message, status in self.state.errors}
        self.details: dict[tuple[int, int, int], Detail] = {}
        for worker, blob in self.state.details:
            self._detail(worker, blob)
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

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Until the run is finished and all rings are empty; returns the final report."""
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
        self.intake.scan()
        for drained in self.intake.drain(finished=finished):
            self._enter(drained, now)
        if finished and self.intake.done:
            return self._finish(now)
        closing = self.totals.tick_at(now - GRACE_NS) - self.totals.next_tick if self.totals.start_ns else 0
        if closing > 0:
            self._close_ticks(closing, now)
        return None

    def _read_manifest(self) -> None:
        """Only when it was replaced. A segment directory that somebody removed leaves the last manifest in force."""
        with suppress(FileNotFoundError):
            status = (self.directory / MANIFEST).stat()
            if (status.st_ino, status.st_mtime_ns) != self._stamp:
                self._stamp = (status.st_ino, status.st_mtime_ns)
                # The supervisor's manifest does not hold what this process found out about the host.
                described = self.manifest.host
                self.manifest = read_manifest(self.directory)
                self.manifest.host = described | self.manifest.host
        self.totals.start_ns = self.manifest.phases[0].start_ns if self.manifest.phases else 0

    # --- records ------------------------------------------------------------------------------------------------

    def _enter(self, drained: Drained, now: int) -> None:
        for blob in drained.details:
            self._detail(drained.worker, blob)
        details = self._claim(drained) if self.details else {}
        if self.count_tokens is not None and details:
            try:
                count_locally(drained.records, details, self.count_tokens)
            except Exception as error:  # the tokenizer's: its replies stay uncounted, the measurement goes on
                self.count_tokens = None
                self.problems.append(f"tokens are no longer counted: {type(error).__name__}: {error}")
        if details:
            self.comparison.mark(drained.records, details)
        batch = self.reader.batch(drained.records, worker=drained.worker, details=details)
        self.totals.enter(drained, batch, now_ns=now)
        if self.arrivals is not None:
            self.arrivals.add(drained.records)
        self._note_errors(batch)
        if len(drained.records):
            complete = batch._replace(gaps=drained.gaps, owners=drained.owners)
            with self.writes:
                for sink in self.sinks:
                    sink.rows(complete, self.manifest)

    def _detail(self, worker: int, blob: bytes) -> None:
        try:
            detail = _detail_of(blob)
        except msgspec.DecodeError:
            return  # can't happen, our own worker wrote it: skip it rather than abort the run
        known = self.details.setdefault((worker, detail.phase, detail.request), detail)
        if known is not detail:
            known.add(detail)
        # A record that was dropped never claims its detail: without a bound these would grow for weeks.
        if len(self.details) > DETAILS_KEPT:
            del self.details[next(iter(self.details))]

    def _claim(self, drained: Drained) -> dict[tuple[int, int], Detail]:
        """The details whose records have come. A detail is written before its record and may be read a turn earlier."""
        pairs = zip(drained.records["phase"].tolist(), drained.records["request"].tolist(), strict=True)
        return {key: detail for key in pairs if (detail := self.details.pop((drained.worker, *key), None)) is not None}

    def _note_errors(self, batch: Batch) -> None:
        if not any(detail.message for detail in batch.details.values()):
            return
        for record in batch.records[batch.records["outcome"] > Outcome.OK]:
            detail = batch.details.get((int(record["phase"]), int(record["request"])))
            if detail is not None and detail.message:
                target = int(record["target"]) if record["target"] < self.reader.targets else NOBODY
                status = int(record["http_status"]) or None
                message = detail.message[:MESSAGE_CHARS]
                self.errors[target, int(record["outcome"])] = (message, status)

    # --- a tick ---------------------------------------------------------------------------------------------------

    def _close_ticks(self, ticks: int, now: int, *, last: bool = False) -> Report:
        """Closes so many ticks and makes them safe. After a stall that is several; they share the moment's report."""
        moment = self._moment(now)
        observe(self.state.health, self._before, moment)
        self.live.read(self.intake.segments, self.totals.next_tick, self.totals.next_tick + ticks)
        closed = []
        for tick in range(self.totals.next_tick, self.totals.next_tick + ticks):
            issuing = None if last else phases_issuing(self.manifest, self.totals.end_of(tick))
            closed.append((tick, self.totals.close(self.live, issuing), self.totals.in_flight()))
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
        self._save()
        self._before = moment
        self._show(report, snapshot)
        return report

    def _measures_at(self, tick: int) -> bool:
        phase = phase_at(self.manifest, self.totals.end_of(tick) - 1)
        return self.manifest.plan.phases[phase].measure

    def _moment(self, now: int) -> Moment:
        return Moment(
            now_ns=now,
            counters=self.intake.counters_by_worker(),
            lag=self.intake.lag(),
            sample=host.sample(self.manifest.pids),
            tap=read_tap_status(self.directory),
            write_wait_ns=self.writes.blocked_ns,
            restarts=self.manifest.restarts,
        )

    @property
    def _restarts(self) -> tuple[int, int, int]:
        """Of workers, collector and exporter."""
        return self.manifest.restarts, self.manifest.collector_restarts, self.manifest.exporter_restarts

    def _client_of_tick(self, moment: Moment, everything: Series) -> Client:
        return client_of_tick(
            self._before,
            moment,
            everything,
            self.state.health,
            workers=self.manifest.workers,
            restarts=self._restarts,
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
            problems=tuple(self.problems),
            self_checks=self._self_checks() if finished else (),
        )
        view = RunView(self.manifest, self.totals, moment.now_ns)
        client = partial(
            client_of_run, moment, health=self.state.health, workers=self.manifest.workers, restarts=self._restarts
        )
        report = self.builder.report(view, client_of=client, errors=self.errors, finished=finished, losses=losses)
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
        return failed_checks(totals.ladders, self.arrivals, phases, totals.tick_ns)

    def _overspent_usd(self) -> float:
        budget = self.manifest.plan.limits.budget_usd
        spent = self.totals.run.sums().tally[Tally.PICO_USD] / PICO_PER_USD
        return 0.0 if budget is None else max(0.0, spent - budget)

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
        state.errors = [(target, outcome, *message) for (target, outcome), message in self.errors.items()]
        state.details = [(key[0], msgspec.msgpack.encode(detail)) for key, detail in self.details.items()]
        state.servers = self.servers.windows
        self.intake.save(state)
        self.live.save(state)
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
        self.live.release(self.intake.segments)
        self.intake.release()

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
            next_tick, now_tick = self.totals.next_tick, self.totals.tick_at(now)
            self.live.read(self.intake.segments, next_tick, next_tick)
            # Records of the drain may have opened ticks beyond the last phase: their lines are written as well.
            newest = max([*self.totals.open, min(self.live.newest, now_tick), min(now_tick, self._last_tick())])
            ticks = newest + 1 - next_tick
        if not self.state.done:  # the last line of intervals.jsonl says so, once
            ticks = max(1, ticks)
            self.live.fold(self.totals.next_tick + ticks - 1)
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


def count_locally(
    records: npt.NDArray[np.void], details: dict[tuple[int, int], Detail], count: Callable[[str], int]
) -> None:
    """Fills in the output tokens of complete replies whose provider reported none, from their text if all of it came."""
    unsaid = (records["output_tokens"] == UNKNOWN) & (records["outcome"] == Outcome.OK)
    for i in np.flatnonzero(unsaid).tolist():
        detail = details.get((int(records["phase"][i]), int(records["request"][i])))
        if detail is not None and detail.texts and len(detail.texts) == detail.pieces:
            records["output_tokens"][i] = count("".join(detail.texts))
            records["flags"][i] |= LOCAL_TOKENS
