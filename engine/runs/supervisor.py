"""The supervisor: starts, pins, watches, restarts and stops the workers and the collector. It owns no measured data.

One thread, one selector: the workers' pipes, a pidfd per child, and the signals of the command. What it knows is in the
manifest (run.json in the segment directory) before anything depends on it, so that a killed run can be finished by
`lens recover`. A phase is ordered with its start on the monotonic clock; what a worker has done of it is read from its
segment after its death, never asked of it.
"""

from __future__ import annotations

import os
import selectors
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import Final

import psutil

from ..errors import LensError, error_of
from ..plan.plan import Plan
from ..plan.written import secrets
from ..process import environ_without_keys
from ..records.layout import Geometry
from ..records.resume import mark_dead
from ..wire.tap.filters import Server
from .child import WorkerChild, ended
from .collecting import Collecting
from .control import Order, Share, salted
from .interrupts import Interrupts
from .manifest import Manifest
from .phases import SHORTENED, Alone, Starts, chained, drain_order
from .placement import core_plan
from .runlog import note
from .tap import TapProcess

READY_TIMEOUT_S: Final = 30.0
YOUNG_NS: Final = 1_000_000_000  # a worker that dies younger than this without having sent anything ...
FAILURES_MAX: Final = 5  # ... so often in a row is given up; so is a collector that fails so often in a row
DRAIN_LIMIT_PASSED_NS: Final = 1 << 62  # everything in flight was cancelled
TURN_S: Final = 0.1
WORKER: Final = (sys.executable, "-m", "llm_latency_lens.engine.worker")
PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Supervisor:
    """Runs one plan to its end. `run()` blocks; signals and `on_tick` are served meanwhile.

    `collector` is the command of the collector process; the supervisor knows nothing of what it does. `on_tick` returns a
    reason to stop, or None. `starts` says when the phases begin; without it as soon as all workers are ready.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        segment_dir: Path,
        collector: Sequence[str],
        geometry: Geometry,
        interrupts: Interrupts,
        *,
        prices: Sequence[tuple[int, int]] = (),
        on_tick: Callable[[], str | None] = lambda: None,
        starts: Starts | None = None,
        tap: TapProcess | None = None,
        realtime: bool = False,
    ) -> None:
        self.plan = plan
        self.manifest = manifest
        self.segment_dir = segment_dir
        self.run_dir = Path(manifest.run_dir)
        self.geometry = geometry
        self.prices = list(prices)
        self.on_tick = on_tick
        self.starts = starts or Alone()
        self.tap = tap
        self.realtime = realtime
        self.interrupts = interrupts
        self.interrupts_seen = 0
        self.environ = environ_without_keys(os.environ, frozenset(secrets(plan)))
        self.selector = selectors.DefaultSelector()
        cores = core_plan(manifest.workers) if plan.workers.pin else None
        self.spare_cores = cores.spare if cores else []
        self.workers = [
            WorkerChild(self.selector, manifest.first_worker + i, [cores.workers[i]] if cores else [])
            for i in range(manifest.workers)
        ]
        self.collecting = Collecting(
            self.selector, manifest, segment_dir, collector, cores=self.spare_cores, environ=self.environ
        )
        self.drain_deadline_ns = 0
        self.next_phase = 0
        self._failure: LensError | None = None

    @property
    def failure(self) -> LensError | None:
        """Why the run cannot go on."""
        return self._failure or self.collecting.failure

    @property
    def worker_cores(self) -> list[int]:
        """The cores that workers are pinned to; empty if they are not."""
        return [core for worker in self.workers for core in worker.cores]

    def keep_aside(self, pids: Sequence[int]) -> None:
        """Pins other processes to the cores that no worker has."""
        for pid in pids if self.spare_cores else ():
            with suppress(psutil.Error):  # it has ended
                psutil.Process(pid).cpu_affinity(self.spare_cores)

    def run(self) -> Manifest:
        """The complete run, until summary.json is written. Raises LensError when it cannot be carried out."""
        self.selector.register(self.interrupts.fd, selectors.EVENT_READ, self._on_signal)
        try:
            self._run()
        finally:
            self._kill_all()
            self.selector.close()
        if self.failure is not None:
            raise self.failure
        return self.manifest

    def _run(self) -> None:
        if self.spare_cores:
            psutil.Process().cpu_affinity(self.spare_cores)
        self._on_signal()  # one that came before this
        for worker in self.workers:
            self._start_worker(worker)
        self.collecting.start()
        self._until(lambda: self._stopped or all(worker.ready for worker in self.workers), READY_TIMEOUT_S, "start")
        self._begin()
        while self.failure is None and not self._workers_finished:
            self._turn()
            self._steer()
        if self.failure is None:
            self._stop_workers()
        else:
            self._abandon_workers(self.failure)
        self._finish_collecting()

    # --- starting -------------------------------------------------------------------------------------------------

    def _start_worker(self, worker: WorkerChild) -> None:
        self.publish()  # also creates a removed segment directory again
        worker.incarnation += 1
        worker.started_ns = monotonic_ns()
        worker.launch(
            [*WORKER, str(worker.index)], lambda: self._died(worker), lambda: self._receive(worker), self.environ
        )
        share = Share(
            plan=salted(self.plan, self.manifest.run_id),
            run_id=self.manifest.run_id,
            worker=worker.index,
            workers=self.manifest.workers_total or self.manifest.workers,
            incarnation=worker.incarnation,
            segment=str(worker.segment(self.segment_dir)),
            geometry=tuple(self.geometry),
            environ={key: value for key, value in os.environ.items() if key.lower() in PROXY_VARIABLES},
            budget_left=worker.budget_left,
            prices=self.prices,
            stamps="segment" if self.tap else "read",
            realtime=self.realtime,
        )
        worker.send(share)
        self._record_child(f"worker-{worker.index}", worker)

    def _record_child(self, role: str, child: WorkerChild) -> None:
        self.manifest.pids[role] = child.pid
        self.manifest.cores[role] = child.cores
        self.publish()

    def publish(self) -> None:
        """Writes run.json; with a full tmpfs every turn tries again."""
        self.collecting.publish()

    def _begin(self) -> None:
        """Orders the first phase when its start is known; nothing where the run was ended before."""
        manifest = self.manifest
        while not self._stopped and self.failure is None and (at_ns := self.starts.at_ns(0)) is None:
            self._turn()
        manifest.set_anchor()
        if self._stopped:
            for times in manifest.phases:
                times.planned = 0
            self.publish()
            return
        if self.failure is not None:
            return
        manifest.state = "running"
        note(self.run_dir, "started", pids=manifest.pids, cores=manifest.cores)
        self._begin_phases(at_ns or monotonic_ns())

    def _begin_phases(self, at_ns: int) -> None:
        """Orders the next phase, and those after it whose start is known by the clock alone."""
        for index, start_ns, end_ns in chained(self.plan, self.next_phase, at_ns):
            self.next_phase = index + 1
            times = self.manifest.phases[index]
            times.start_ns, times.end_ns = start_ns, end_ns
            starts_in_s = round((start_ns - monotonic_ns()) / 1e9, 6)
            note(self.run_dir, "phase", name=self.plan.phases[index].name, starts_in_s=starts_in_s)
            origin_ns = self.manifest.phases[0].start_ns
            for worker in self.workers:
                if not worker.gone:
                    order = Order(do="phase", phase=index, at_ns=start_ns, origin_ns=origin_ns, first=worker.index)
                    worker.order_phase(order)
        self.publish()

    # --- running --------------------------------------------------------------------------------------------------

    @property
    def _stopped(self) -> bool:
        return bool(self.manifest.stop_reason)

    def _turn(self, timeout_s: float = TURN_S) -> None:
        for key, _ in self.selector.select(timeout_s):
            key.data()
        self.collecting.publish_again()

    @property
    def _workers_finished(self) -> bool:
        complete = self.next_phase == len(self.plan.phases) or self._stopped
        return all(worker.gone or (complete and worker.begun.keys() <= worker.phases_done) for worker in self.workers)

    def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = monotonic_ns() + int(timeout_s * 1e9)
        while not condition():
            if self.failure is not None:
                raise self.failure
            if monotonic_ns() > end:
                raise LensError(f"the workers did not {what} within {timeout_s:g} s; is the machine overloaded?")
            self._turn()

    def _steer(self) -> None:
        """Begins phases that waited for others, watches the drain limit and the stop rules."""
        now = monotonic_ns()
        alive = [worker for worker in self.workers if not worker.gone]
        current = self.next_phase - 1
        more = self.next_phase < len(self.plan.phases) and not self._stopped
        if more and all(current in worker.phases_done for worker in alive):
            times = self.manifest.phases[current]
            times.end_ns = min(times.end_ns or now, now)
            if (at_ns := self.starts.at_ns(self.next_phase)) is not None:
                self._begin_phases(at_ns)
        last = self.manifest.phases[-1]
        complete = self.next_phase == len(self.plan.phases)
        if complete and last.end_ns and now > last.end_ns and not self.drain_deadline_ns:
            self._drain(last.end_ns)
        if self.drain_deadline_ns and now > self.drain_deadline_ns:
            self.drain_deadline_ns = DRAIN_LIMIT_PASSED_NS
            self._send_all(Order(do="cancel", reason="in_flight"))
        if self.tap is not None and self.tap.ended():
            note(self.run_dir, "tap_ended", detail="from now on segments have no stamps of their own")
            self.tap = None
        reason = self.on_tick()
        if reason and not self._stopped:
            self.stop(reason)

    def _drain(self, since_ns: int) -> None:
        limit_ns = self.plan.limits.drain_ns
        self.drain_deadline_ns = since_ns + limit_ns
        self.manifest.state = "draining"
        self.publish()
        note(self.run_dir, "draining", reason=self.manifest.stop_reason or "planned", limit_s=limit_ns / 1e9)

    def stop(self, reason: str) -> None:
        """Sends nothing more and drains; the report says the reason."""
        self.manifest.stop_reason = reason
        if self.next_phase == 0:  # not begun: _begin() sees it
            return
        now = monotonic_ns()
        self.manifest.end_phases(now, countable=reason not in SHORTENED)
        self._drain(now)
        self._send_all(drain_order(reason))

    def cancel(self) -> None:
        """Ends what is in flight."""
        self._send_all(Order(do="cancel", reason="cancelled"))

    def _receive(self, worker: WorkerChild) -> None:
        for word in worker.receive():
            if word.say == "ready":
                self._ready(worker)
            elif word.say == "phase_done":
                worker.phases_done.add(word.phase)
            elif word.say == "resolved":
                if self.tap is not None:
                    self.tap.hold(Server(*server) for server in word.servers)
            else:
                self._failure = error_of(word.text, word.code)

    def _ready(self, worker: WorkerChild) -> None:
        worker.ready = True
        worker.open_segment(self.segment_dir)
        self._end_outage(worker)
        worker.order_again()
        if worker.begun and self._stopped:
            worker.send(drain_order(self.manifest.stop_reason))
        if self.drain_deadline_ns == DRAIN_LIMIT_PASSED_NS:
            worker.send(Order(do="cancel", reason="in_flight"))
        if worker.stopping:
            worker.send(Order(do="stop"))

    def _end_outage(self, worker: WorkerChild) -> None:
        """Its share goes on, or the run is over: the manifest says how long it did not."""
        if worker.died_ns:
            self.manifest.add_outage(worker.died_ns, monotonic_ns())
            worker.died_ns = 0
            self.publish()

    # --- deaths ---------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerChild) -> None:
        self._receive(worker)  # its last messages
        code = worker.reap()
        if worker.stopping and code == 0:
            worker.gone = True
            worker.close_segment()
            return
        worker.died_ns = worker.died_ns or monotonic_ns()
        segment = worker.last_segment(self.segment_dir)
        if segment:
            mark_dead(segment)
        elif code > 0 and self.failure is None:
            self._failure = LensError(f"worker {worker.index} ended with {ended(code)} before it was ready")
        if worker.stopping or self.failure is not None:
            worker.gone = True
            return
        self._replace(worker, segment, code)

    def _replace(self, worker: WorkerChild, segment: Path | None, code: int) -> None:
        """Starts the next incarnation where the dead one stopped, unless too many in a row died at their start."""
        moved = segment is not None and worker.resume_from(segment)
        worker.close_segment()
        self.manifest.restarts += 1
        self.manifest.add_outage(worker.died_ns, worker.died_ns)  # if we die before it is back, recover knows the tick
        young = monotonic_ns() - worker.started_ns < YOUNG_NS
        worker.consecutive_failures = worker.consecutive_failures + 1 if young and not moved else 0
        phase, slot = worker.reached
        note(self.run_dir, "worker_died", worker=worker.index, how=ended(code), phase=phase, resumes_at=slot)
        if worker.consecutive_failures < FAILURES_MAX:
            self._start_worker(worker)
            return
        worker.gone = True
        self._failure = LensError(
            f"worker {worker.index} died {FAILURES_MAX} times right after its start ({ended(code)})"
        )

    # --- stopping -------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """The first signal drains the run, the second cancels what is in flight, the third gives up. Several may have
        come since the last look: each step is taken."""
        self.interrupts.clear()
        seen, self.interrupts_seen = self.interrupts_seen, len(self.interrupts.numbers)
        if seen < 1 <= self.interrupts_seen:
            self.manifest.interrupted = True
            self.stop("interrupted")
        if seen < 2 <= self.interrupts_seen:
            self.cancel()
        if self.interrupts_seen > 2:
            raise LensError("interrupted three times: the report was not finished; see `lens recover`")

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.stopping = True
        self._send_all(Order(do="stop"))
        self._until(lambda: all(worker.gone for worker in self.workers), READY_TIMEOUT_S, "stop")

    def _abandon_workers(self, failure: LensError) -> None:
        """The run cannot go on: its workers end now, what they recorded stays."""
        self.manifest.stop_reason = f"failed: {failure}"
        self.manifest.end_phases(monotonic_ns(), countable=False)
        for worker in self.workers:
            worker.kill()
        while any(worker.running for worker in self.workers):
            self._turn()

    def _finish_collecting(self) -> None:
        """Declares the run finished and waits until the collector has written summary.json."""
        for worker in self.workers:
            self._end_outage(worker)
        now = monotonic_ns()
        for times in self.manifest.phases:
            if times.start_ns and not times.end_ns:
                times.end_ns = now
        self.manifest.state = "finished"
        self.publish()
        note(self.run_dir, "finished", restarts=self.manifest.restarts, failure=str(self.failure or ""))
        self.collecting.wait(self._turn)

    def _kill_all(self) -> None:
        """Nothing that was started stays, whatever happened."""
        for child in [*self.workers, self.collecting.child]:
            child.kill()
            child.reap()
        for worker in self.workers:
            worker.close_segment()

    def _send_all(self, order: Order) -> None:
        for worker in self.workers:
            if worker.ready and not worker.gone:
                worker.send(order)
