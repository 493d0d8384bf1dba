"""The supervisor: spawns, pins, watches, restarts and stops the workers and the collector. It owns no measured data.

Everything it knows stands in the manifest (run.json in the segment directory), so that a killed run can be finished.
"""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any, Final

import msgspec
import psutil

from ..errors import LensError, PlanError, SegmentError
from ..frames import Frames, frame
from ..load.limits import most_workers
from ..plan.plan import Phase, Plan, salted
from ..records.layout import Geometry
from ..records.resume import budget_left, mark_dead, resume_point
from .control import Order, Share, Word
from .manifest import FILE as MANIFEST
from .manifest import SEGMENTS, Manifest
from .runlog import note
from .tap import TapProcess

READY_TIMEOUT_S: Final = 30.0
START_DELAY_NS: Final = 20_000_000  # between the last "ready" and the first slot
PHASE_GAP_NS: Final = 20_000_000  # between two phases when the first is not bounded by time
COLLECTOR_TIMEOUT_S: Final = 60.0
LIFE_MIN_NS: Final = 1_000_000_000  # a worker that dies younger than this without having sent anything ...
LIVES_IN_VAIN: Final = 5  # ... so often in a row is given up; so is a collector that fails so often in a row
DESCRIPTORS_SPARE: Final = 64
LIMIT_PASSED_NS: Final = 1 << 62  # the drain limit is over, and everything in flight was ended
RING_SECONDS: Final = 12  # what the lanes hold at the expected peak
PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class WorkerProcess:
    """One worker through all its lives."""

    def __init__(self, index: int, cores: list[int]) -> None:
        self.index = index
        self.cores = cores
        self.incarnation = -1
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.segment_fd = (
            -1
        )  # once it is ready: a segment that somebody deletes still tells where the next life goes on
        self.frames = Frames(Word)
        self.ready = False
        self.gone = False
        self.lives_in_vain = 0  # in a row
        self.reached = (0, 0)  # (phase, slot) at which the next life goes on
        self.born_ns = 0
        self.died_ns = 0  # 0 while it works
        self.begun: dict[int, Order] = {}
        self.phases_done: set[int] = set()
        self.stopping = False
        self.budget_left: int | None = None  # pico-USD, once a life of it has ended

    def segment(self, directory: Path) -> Path:
        return directory / f"worker-{self.index}.{self.incarnation}.ring"

    def keep_segment(self, directory: Path) -> None:
        with suppress(FileNotFoundError):
            self.segment_fd = os.open(self.segment(directory), os.O_RDWR | os.O_CLOEXEC)

    def let_segment_go(self) -> None:
        if self.segment_fd >= 0:
            os.close(self.segment_fd)
            self.segment_fd = -1


class Supervisor:
    """Runs one plan to its end. `run()` blocks; signals and `on_tick` are served meanwhile.

    `collector` is the command of the collector process; the supervisor knows nothing of what it does.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        segment_dir: Path,
        collector: Sequence[str],
        geometry: Geometry,
        *,
        prices: Sequence[tuple[int, int]] = (),
        on_tick: Callable[[], str | None] = lambda: None,
        starts_wall_ns: int = 0,
        tap: TapProcess | None = None,
    ) -> None:
        self.plan = plan
        self.manifest = manifest
        self.segment_dir = segment_dir
        self.collector_command = list(collector)
        self.prices = list(prices)
        self.on_tick = on_tick
        self.starts_wall_ns = starts_wall_ns  # of the first phase, Unix epoch; 0: as soon as all are ready
        self.selector = selectors.DefaultSelector()
        cores = core_plan(manifest.workers) if plan.workers.pin else None
        self.workers = [WorkerProcess(i, [cores.workers[i]] if cores else []) for i in range(manifest.workers)]
        self.spare = cores.spare if cores else []
        self.geometry = geometry
        self.collector: subprocess.Popen[bytes] | None = None
        self.collector_pidfd = -1
        self.collector_failures = 0  # in a row; a SIGKILL is none
        self.interrupts = 0
        self.deadline_ns = 0  # of the drain
        self.next_phase = 0
        self.failure: LensError | None = None
        self.unpublished = False
        self.run_dir = Path(manifest.run_dir)
        self.tap = tap
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def keep_aside(self, pids: Sequence[int]) -> None:
        """Pins other processes to the cores that no worker has."""
        for pid in pids if self.spare else ():
            psutil.Process(pid).cpu_affinity(self.spare)

    def run(self) -> Manifest:
        """The whole run, until the books are closed. Raises LensError when it cannot be carried out."""
        previous = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        wakeup = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self.selector.register(self._wake[0], selectors.EVENT_READ, self._woken)
        try:
            if self.spare:
                psutil.Process().cpu_affinity(self.spare)
            for worker in self.workers:
                self._spawn(worker)
            self._spawn_collector()
            self._until(lambda: all(worker.ready for worker in self.workers), READY_TIMEOUT_S, "start")
            self._start()
            while self.failure is None and not all(self._finished(worker) for worker in self.workers):
                self._turn(0.1)
                self._steer()
            if self.failure is None:
                self._stop_workers()
            else:
                self._abandon_workers()
            self._close_books()
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup)
            for number, action in previous.items():
                signal.signal(number, action)
            self.selector.close()
            os.close(self._wake[0])
            os.close(self._wake[1])
        if self.failure is not None:
            raise self.failure
        return self.manifest

    # --- starting -------------------------------------------------------------------------------------------------

    def _spawn(self, worker: WorkerProcess) -> None:
        self._publish()  # also makes a segment directory anew that was removed
        worker.incarnation += 1
        worker.ready = False
        worker.born_ns = monotonic_ns()
        worker.frames = Frames(Word)
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_latency_lens.engine.worker", str(worker.index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
        )
        worker.process = process
        if worker.cores:
            psutil.Process(process.pid).cpu_affinity(worker.cores)
        share = Share(
            plan=salted(self.plan, self.manifest.run_id),
            run_id=self.manifest.run_id,
            worker=worker.index,
            workers=self.manifest.workers,
            incarnation=worker.incarnation,
            segment=str(worker.segment(self.segment_dir)),
            geometry=tuple(self.geometry),
            stamps="segment" if self.tap else "read",
            environ={key: value for key, value in os.environ.items() if key.lower() in PROXY_VARIABLES},
            budget_left=worker.budget_left,
            prices=self.prices,
        )
        self._tell(worker, share)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        worker.pidfd = os.pidfd_open(process.pid)
        self.selector.register(process.stdout, selectors.EVENT_READ, lambda: self._heard(worker))
        self.selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._died(worker))
        self._note(f"worker-{worker.index}", process.pid, worker.cores)

    def _spawn_collector(self) -> None:
        self._publish()
        log = (self.segment_dir / "collector.log").open("ab")
        self.collector = subprocess.Popen(
            [*self.collector_command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        if self.spare:
            psutil.Process(self.collector.pid).cpu_affinity(self.spare)
        self.collector_pidfd = os.pidfd_open(self.collector.pid)
        self.selector.register(self.collector_pidfd, selectors.EVENT_READ, self._collector_died)
        self._note("collector", self.collector.pid, self.spare)

    def _note(self, role: str, pid: int, cores: list[int]) -> None:
        self.manifest.pids[role] = pid
        self.manifest.cores[role] = cores
        self._publish()

    def _publish(self) -> None:
        """Writes run.json, also into a segment directory that was removed; a full tmpfs is asked again every turn."""
        try:
            self.segment_dir.mkdir(mode=0o700, exist_ok=True)
            self.manifest.write(self.segment_dir)
            self.unpublished = False
        except OSError:
            self.unpublished = True

    def _start(self) -> None:
        manifest = self.manifest
        manifest.anchor_mono_ns, manifest.anchor_wall_ns = monotonic_ns(), time_ns()
        manifest.state = "running"
        note(self.run_dir, "started", pids=manifest.pids, cores=manifest.cores)
        soon = manifest.anchor_mono_ns + START_DELAY_NS
        timed = self.starts_wall_ns - manifest.anchor_wall_ns + manifest.anchor_mono_ns
        self._begin_phases(timed if self.starts_wall_ns else soon)

    def _begin_phases(self, at_ns: int) -> None:
        """Orders the next phase, and those after it whose start is known by the clock alone."""
        while self.next_phase < len(self.plan.phases):
            index = self.next_phase
            phase = self.plan.phases[index]
            self.next_phase += 1
            times = self.manifest.phases[index]
            times.start_ns = at_ns
            times.end_ns = at_ns + phase.duration_ns if phase.duration_ns is not None else 0
            note(self.run_dir, "phase", name=phase.name, starts_in_s=round((at_ns - monotonic_ns()) / 1e9, 6))
            order = Order(do="phase", phase=index, at_ns=at_ns)
            for worker in self.workers:
                if not worker.gone:
                    self._order_phase(worker, msgspec.structs.replace(order, first=worker.index))
            if not times.end_ns or phase.requests is not None:
                break
            at_ns = times.end_ns
        self._publish()

    def _order_phase(self, worker: WorkerProcess, order: Order) -> None:
        worker.begun[order.phase] = order
        if worker.ready:  # else it is told as soon as it is
            self._tell(worker, order)

    # --- running --------------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self.selector.select(timeout_s):
            key.data()
        if self.unpublished or not (self.segment_dir / MANIFEST).exists():
            self._publish()

    def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = monotonic_ns() + int(timeout_s * 1e9)
        while not condition():
            if self.failure is not None:
                raise self.failure
            if monotonic_ns() > end:
                raise LensError(f"the workers did not {what} within {timeout_s:g} s; see {self.segment_dir}")
            self._turn(0.1)

    def _steer(self) -> None:
        """Begins phases that waited for others, watches the drain limit and the stop rules."""
        now = monotonic_ns()
        alive = [worker for worker in self.workers if not worker.gone]
        current = self.next_phase - 1
        more = self.next_phase < len(self.plan.phases) and not self.manifest.stop_reason
        if more and all(current in worker.phases_done for worker in alive):
            self.manifest.phases[current].end_ns = now
            self._begin_phases(now + PHASE_GAP_NS)
        last = self.manifest.phases[-1]
        if self.next_phase == len(self.plan.phases) and last.end_ns and now > last.end_ns and not self.deadline_ns:
            self._draining(last.end_ns)
        if self.deadline_ns and now > self.deadline_ns:
            self.deadline_ns = LIMIT_PASSED_NS
            self._tell_all(Order(do="cancel", reason="in_flight"))
        reason = self.on_tick()
        if reason and not self.manifest.stop_reason:
            self.stop(reason)

    def _draining(self, since_ns: int) -> None:
        self.deadline_ns = since_ns + self.plan.limits.drain_ns
        self.manifest.state = "draining"
        self._publish()
        note(
            self.run_dir,
            "draining",
            reason=self.manifest.stop_reason or "planned",
            limit_s=self.plan.limits.drain_ns / 1e9,
        )

    def stop(self, reason: str) -> None:
        """Sends nothing more and drains; the reason stands in the report."""
        self.manifest.stop_reason = reason
        now = monotonic_ns()
        self._end_phases(now)
        self._draining(now)
        self._tell_all(Order(do="drain", reason="budget" if reason == "budget_usd" else "stopped"))

    def _end_phases(self, now: int) -> None:
        for times in self.manifest.phases:
            if not times.end_ns or times.end_ns > now:
                times.end_ns = now if times.start_ns and times.start_ns < now else times.start_ns

    def _finished(self, worker: WorkerProcess) -> bool:
        if worker.gone:
            return True
        begun = set(worker.begun)
        complete = self.next_phase == len(self.plan.phases) or bool(self.manifest.stop_reason)
        return complete and begun <= worker.phases_done

    def _heard(self, worker: WorkerProcess) -> None:
        assert worker.process is not None
        assert worker.process.stdout is not None
        try:
            piece = os.read(worker.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not piece:
            self._forget(worker.process.stdout)
            return
        for word in worker.frames.feed(piece):
            if word.say == "ready":
                self._ready(worker)
            elif word.say == "phase_done":
                worker.phases_done.add(word.phase)
            else:
                self.failure = PlanError(word.text) if word.code == PlanError.exit_code else LensError(word.text)

    def _ready(self, worker: WorkerProcess) -> None:
        worker.ready = True
        worker.keep_segment(self.segment_dir)
        self._back(worker)
        for order in worker.begun.values():  # after a restart: its share goes on where it stopped
            if order.phase not in worker.phases_done:
                self._tell(worker, order)
        if worker.begun and self.manifest.stop_reason:
            self._tell(worker, Order(do="drain"))
        if self.deadline_ns == LIMIT_PASSED_NS:
            self._tell(worker, Order(do="cancel", reason="in_flight"))
        if worker.stopping:
            self._tell(worker, Order(do="stop"))

    def _back(self, worker: WorkerProcess) -> None:
        """Its share went on, or the run is over: the books are told how long it did not."""
        if worker.died_ns:
            self.manifest.add_outage(worker.died_ns, monotonic_ns())
            worker.died_ns = 0
            self._publish()

    # --- deaths ---------------------------------------------------------------------------------------------------

    def _reap(self, worker: WorkerProcess) -> int:
        process = worker.process
        assert process is not None
        code = process.wait()
        self.selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        if process.stdout is not None:
            self._heard(worker)  # its last words
            self._forget(process.stdout)
            process.stdout.close()
        if process.stdin is not None:
            try:
                process.stdin.close()
            except BrokenPipeError:
                process.stdin = None
        worker.process = None
        return code

    def _forget(self, file: Any) -> None:
        if file in self.selector.get_map():
            self.selector.unregister(file)

    def _died(self, worker: WorkerProcess) -> None:
        code = self._reap(worker)
        worker.died_ns = worker.died_ns or monotonic_ns()
        if worker.stopping and code == 0:
            worker.died_ns = 0
            worker.gone = True
            worker.let_segment_go()
            return
        path = worker.segment(self.segment_dir)
        for unfinished in path.parent.glob(f".{path.name}.*"):
            unfinished.unlink(missing_ok=True)  # it died while it made its segment
        if worker.segment_fd >= 0:
            path = Path(f"/proc/self/fd/{worker.segment_fd}")
        if path.exists():
            mark_dead(path)
        elif code > 0 and self.failure is None:
            self.failure = LensError(f"worker {worker.index} ended with {ended(code)} before it was ready")
        if worker.stopping or self.failure is not None:
            worker.gone = True
            return
        moved = self._take_over(worker, path)
        worker.let_segment_go()
        self.manifest.restarts += 1
        young = monotonic_ns() - worker.born_ns < LIFE_MIN_NS
        worker.lives_in_vain = worker.lives_in_vain + 1 if young and not moved else 0
        phase, slot = worker.reached
        note(self.run_dir, "worker_died", worker=worker.index, how=ended(code), phase=phase, resumes_at=slot)
        if worker.lives_in_vain >= LIVES_IN_VAIN:
            worker.gone = True
            self.failure = LensError(
                f"worker {worker.index} died {LIVES_IN_VAIN} times right after its start ({ended(code)})"
            )
            return
        self._spawn(worker)

    def _take_over(self, worker: WorkerProcess, path: Path) -> bool:
        """Where the next life goes on, from the segment of the last; False if that one did not get further."""
        if not path.exists():
            return False
        point = resume_point(path)
        moved = point > worker.reached
        worker.reached = phase, slot = max(point, worker.reached)
        left = budget_left(path)  # None also of a life too short to write it: then the one before knows
        worker.budget_left = worker.budget_left if left is None else left
        for index, order in worker.begun.items():
            if index == phase:
                order.first = max(order.first, slot)
            elif index < phase:
                worker.phases_done.add(index)
        return moved

    def _collector_died(self) -> None:
        assert self.collector is not None
        code = self.collector.wait()
        self.selector.unregister(self.collector_pidfd)
        os.close(self.collector_pidfd)
        self.collector_pidfd = -1
        if code == 0 and self.manifest.state == "finished":
            return
        self.manifest.collector_restarts += 1
        note(self.run_dir, "collector_died", how=ended(code))
        self.collector_failures = self.collector_failures + 1 if code > 0 else 0
        if self.collector_failures > LIVES_IN_VAIN:
            self.failure = LensError(f"the collector keeps failing: {self._why_and_way_out()}")
            return
        self._spawn_collector()

    # --- stopping -------------------------------------------------------------------------------------------------

    def _signalled(self, _number: int, _frame: Any) -> None:
        self.interrupts += 1

    def _woken(self) -> None:
        os.read(self._wake[0], 4096)
        if self.interrupts == 1 and not self.manifest.interrupted:
            self.manifest.interrupted = True
            self.stop("interrupted")
        elif self.interrupts == 2:
            self._tell_all(Order(do="cancel", reason="cancelled"))
        elif self.interrupts > 2:
            raise LensError("interrupted three times: the report was not finished; see `lens recover`")

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.stopping = True
        self._tell_all(Order(do="stop"))
        self._until(lambda: all(worker.gone for worker in self.workers), READY_TIMEOUT_S, "stop")

    def _abandon_workers(self) -> None:
        """The run cannot go on: its workers end now, what they did stays in the books."""
        self.manifest.stop_reason = f"failed: {self.failure}"
        self._end_phases(monotonic_ns())
        for times in self.manifest.phases:
            times.planned = (
                None  # nobody is left to tell the slots that were not sent; those that were are in the books
            )
        for worker in self.workers:
            if worker.process is not None:
                worker.process.kill()
        self._turn(0)
        while any(worker.process is not None for worker in self.workers):
            self._turn(0.1)

    def _close_books(self) -> None:
        for worker in self.workers:
            self._back(worker)
        now = monotonic_ns()
        for times in self.manifest.phases:
            if times.start_ns and not times.end_ns:
                times.end_ns = now
        self.manifest.state = "finished"
        self._publish()
        note(self.run_dir, "finished", restarts=self.manifest.restarts, failure=str(self.failure or ""))
        end = now + int(COLLECTOR_TIMEOUT_S * 1e9)
        while self.collector_pidfd >= 0:
            if monotonic_ns() > end:
                raise LensError(
                    f"the collector did not finish within {COLLECTOR_TIMEOUT_S:g} s: {self._why_and_way_out()}"
                )
            self._turn(0.1)

    def _why_and_way_out(self) -> str:
        why = log_tail(self.segment_dir / "collector.log").removeprefix("lens: ")
        return f"{why}; `lens recover {self.manifest.run_dir}` finishes the books"

    def _kill_all(self) -> None:
        """Nothing that was spawned stays, whatever happened."""
        for worker in self.workers:
            if worker.process is not None:
                worker.process.kill()
                self._reap(worker)
            worker.let_segment_go()
        if self.collector_pidfd >= 0 and self.collector is not None:
            self.collector.kill()
            self.collector.wait()
            self.selector.unregister(self.collector_pidfd)
            os.close(self.collector_pidfd)

    def _tell(self, worker: WorkerProcess, message: Share | Order) -> None:
        if worker.process is None or worker.process.stdin is None:
            return
        try:
            worker.process.stdin.write(frame(message))
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # its death is on its way through the pidfd

    def _tell_all(self, order: Order) -> None:
        for worker in self.workers:
            if worker.ready and not worker.gone:
                self._tell(worker, order)


class CorePlan(msgspec.Struct, frozen=True):
    """Which logical CPU each worker gets, and those that are left for supervisor and collector."""

    workers: list[int]
    spare: list[int]


def physical_cores(allowed: Sequence[int]) -> list[int]:
    """One logical CPU of each physical core that this process may use."""
    chosen: list[int] = []
    seen: set[str] = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        key = siblings.read_text().strip() if siblings.exists() else str(cpu)
        if key not in seen:
            seen.add(key)
            chosen.append(cpu)
    return chosen


def core_plan(workers: int) -> CorePlan:
    """Worker i on its own core, from the last to the first; supervisor and collector share what is left, or the first."""
    allowed = sorted(psutil.Process().cpu_affinity() or [0])
    cores = physical_cores(allowed)
    taken = [cores[-1 - i % len(cores)] for i in range(workers)]
    spare = [cpu for cpu in cores if cpu not in taken] or [cores[0]]
    return CorePlan(taken, spare)


def worker_count(plan: Plan) -> int:
    """How many workers the plan gets: as asked, or one per physical core but one.

    Never more than there are places to fill, or whole requests in the burst of a requests-per-minute limit: each worker
    has an exact share of them.
    """
    cores = len(physical_cores(sorted(psutil.Process().cpu_affinity() or [0])))
    count = plan.workers.count or max(1, cores - 1)
    for phase in plan.phases:
        places = phase.load.max_in_flight
        if phase.load.model == "closed":
            places = int(max(max(shape.start, shape.end) for shape in phase.load.shapes))
        if places is not None:
            count = min(count, max(1, places))
        if phase.requests is not None:
            count = min(count, phase.requests)
    bursts = most_workers(plan)
    return count if bursts is None else min(count, bursts)


def places_of(phase: Phase, workers: int) -> int | None:
    """How many requests of this phase one worker may have in flight; None where only descriptors limit it."""
    load = phase.load
    if load.model == "closed":
        return -(-int(max(max(shape.start, shape.end) for shape in load.shapes)) // workers)
    return None if load.max_in_flight is None else -(-load.max_in_flight // workers)


def geometry_of(plan: Plan, workers: int, tmpfs: Path = SEGMENTS.parent) -> Geometry:
    """Ring sizes for at least RING_SECONDS of the expected peak, as far as the tmpfs allows.

    Raises PlanError when the file descriptors do not suffice, SegmentError when the tmpfs does not.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    available = (1 << 20 if hard == resource.RLIM_INFINITY else hard) - DESCRIPTORS_SPARE
    wanted = [places_of(phase, workers) for phase in plan.phases]
    most = max((places for places in wanted if places is not None), default=0)
    if most > available:
        raise PlanError(
            f"{most} requests in flight per worker need {most + DESCRIPTORS_SPARE} file descriptors, the limit is {hard}; "
            f"raise it (`ulimit -n {most + DESCRIPTORS_SPARE}`, or LimitNOFILE= under systemd), "
            "use more workers or a lower concurrency"
        )
    in_flight = most if None not in wanted else max(most, min(available, 1 << 16))
    peak = 0.0
    for phase in plan.phases:
        if phase.load.model == "closed":
            peak = max(peak, 10_000.0)
        else:
            peak = max(peak, *(max(shape.start, shape.end) / workers for shape in phase.load.shapes))
    requests = power_of_two(max(4096, int(peak * RING_SECONDS)))
    gaps = 1 << 20
    free = shutil.disk_usage(tmpfs).free
    while requests > 4096 and workers * (requests * 256 + gaps * 8) > free * 0.8:
        requests //= 2
        gaps = max(gaps // 2, 1 << 14)
    if workers * (requests * 256 + gaps * 8) > free:
        raise SegmentError(
            f"{tmpfs} has {free >> 20} MB free, the rings need {workers * (requests * 256 + gaps * 8) >> 20} MB; "
            "give the tmpfs more room (mount -o remount,size=...), remove what dead runs left (`lens recover` lists them) "
            "or use fewer workers"
        )
    details = max(8192, min(requests, 1 << 15))  # nearly every reply has one: its request id
    return Geometry(requests, gaps, details, in_flight, len(plan.phases), len(plan.targets))


def power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def ended(code: int) -> str:
    """How a process ended, in words: `signal SIGKILL` or `exit code 1`."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def log_tail(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return lines[-1].strip() if lines else "it left no message"
