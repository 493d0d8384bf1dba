"""What a worker measures of itself: its clock mapping, garbage collections, CPU time; and how it publishes all of it.

The counters are plain words in the segment, so that publishing costs no message and the last values survive the
worker. Garbage is not collected while requests are due: a full collection stops the worker for longer than any other
thing it does. The hot path makes no reference cycles; what others make is collected at idle points.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from time import monotonic_ns, process_time_ns
from typing import Final

from ..load.phase_run import PhaseRun
from ..process import RunQueue
from ..records.layout import Counter
from ..records.record import CLOCK_STEPPED
from ..records.tap_status import TapWatch
from ..wire.pool import Pool
from ..wire.reactor import Reactor
from .ledger import Ledger

BEAT_NS: Final = 100_000_000
CLOCK_CHECK_NS: Final = 1_000_000_000
PULSE_NS: Final = 50_000_000  # how often the loop looks at its own punctuality
STALL_NS: Final = 30_000_000  # a pulse this late, and no wait for a CPU or garbage collection that explains it
STOP_NS: Final = 100_000_000  # a pulse this late: the loop stood still, stopped or without a CPU
IDLE_COLLECT_NS: Final = 30_000_000_000  # garbage is collected at idle points, at most this often
IDLE_GAP_NS: Final = 20_000_000  # a point is idle if nothing is due for this long


class Health:
    """One worker's own measurements. `runs` and `pools` are the worker's, looked at when something is published.

    `tap` is the run's, if it has one: the reactor learns at every heartbeat whether it protects the stamps.
    """

    def __init__(
        self,
        reactor: Reactor,
        ledger: Ledger,
        pools: Sequence[Pool],
        runs: Sequence[PhaseRun],
        tap: TapWatch | None = None,
    ) -> None:
        self._clock = reactor.clock
        self._reactor = reactor
        self._tap = tap
        self._run_queue = RunQueue()
        self._ledger = ledger
        self._counters = ledger.segment.counters
        self._pools = pools
        self._runs = runs
        self._measured_ns = self._measured_cpu_ns = self._measured_events = 0
        self._measured_waited_ns = self._measured_stopped_ns = 0
        self._mark_ns, self._mark_cpu_ns, self._mark_events = monotonic_ns(), 0, 0
        self._mark_waited_ns = self._run_queue.waited_ns()
        self._checked_ns = 0
        self._collected_ns = 0
        self._collecting_ns = 0  # when the collection that runs began, 0 for none
        self._pulse_gc_ns = 0
        self._pulse_waited_ns = self._mark_waited_ns
        self._beat_ns = 0

    def pulse(self, now_ns: int, due_ns: int) -> None:
        """A look at the loop's punctuality that was due at `due_ns`, with a heartbeat every BEAT_NS.

        What a late pulse shows is most of the stop, whenever it began: a process that was stopped for 100 ms finds its
        pulse 50 to 100 ms late.
        """
        late_ns = now_ns - due_ns
        waited_ns = self._run_queue.waited_ns()
        if late_ns > STALL_NS:
            self._late(late_ns, waited_ns - self._pulse_waited_ns)
        self._pulse_waited_ns, self._pulse_gc_ns = waited_ns, self._counters[int(Counter.GC_NS)]
        if late_ns > STALL_NS or now_ns - self._beat_ns >= BEAT_NS:
            self._beat_ns = now_ns
            self._beat(now_ns)

    def _late(self, late_ns: int, waited_ns: int) -> None:
        """Counts a stop of the loop, and what of it has no cause that is counted elsewhere: no wait for a CPU of
        `waited_ns` and no garbage collection since the last pulse."""
        if late_ns > STOP_NS and self._measuring(monotonic_ns()):
            self._measured_stopped_ns += late_ns
        gc_ns = self._counters[int(Counter.GC_NS)] - self._pulse_gc_ns
        if self._collecting_ns:  # in another thread, which has not come to note its end
            gc_ns += monotonic_ns() - self._collecting_ns
        unexplained_ns = late_ns - waited_ns - gc_ns
        if unexplained_ns > STALL_NS:
            self._counters[int(Counter.STALLED_NS)] += unexplained_ns

    def _measuring(self, now_ns: int) -> bool:
        return any(run.phase.measure and run.start_ns <= now_ns for run in self._runs)

    def _beat(self, now_ns: int) -> None:
        """A heartbeat: measures, publishes and checks the clock mapping about once a second."""
        self.measure()
        if self._tap is not None:
            self._reactor.protected = self._tap.protects(now_ns)
        self.publish()
        self._ledger.segment.ticks.acknowledge()
        if now_ns - self._checked_ns >= CLOCK_CHECK_NS:
            self._checked_ns = now_ns
            self.check_clock()

    def suspect(self, stamp_ns: int, now_ns: int) -> tuple[int, bool]:
        """A kernel stamp lies in the future or far back: has CLOCK_REALTIME been stepped?

        Returns the stamp to use, and whether it is still the kernel's.
        """
        if self.check_clock() or stamp_ns > now_ns:
            return now_ns, False
        return stamp_ns, True

    def check_clock(self) -> bool:
        """Measures the clock mapping again. True if CLOCK_REALTIME was stepped: what runs is marked as not to be believed."""
        if not self._clock.resample():
            return False
        self._counters[int(Counter.CLOCK_STEPS)] += 1
        for exchange in self._ledger.active:
            exchange.flags |= CLOCK_STEPPED
        return True

    def on_gc(self, phase: str, _details: dict[str, int]) -> None:
        """The garbage collector's hook (gc.callbacks): every pause is counted, with its length."""
        if phase == "start":
            self._counters[int(Counter.GC_PAUSES)] += 1
            self._collecting_ns = monotonic_ns()
        else:
            self._counters[int(Counter.GC_NS)] += monotonic_ns() - self._collecting_ns
            self._collecting_ns = 0

    def collect_if_idle(self, now_ns: int, next_slot_ns: Callable[[], int]) -> None:
        """Collects garbage if no slot is due soon. To be called when nothing is in flight."""
        if now_ns - self._collected_ns > IDLE_COLLECT_NS and next_slot_ns() > now_ns + IDLE_GAP_NS:
            gc.collect()
            self._collected_ns = now_ns

    def measure(self) -> None:
        """Adds time, CPU time and events since the last call to the measured ones, if a measured phase is running."""
        now, cpu, events = monotonic_ns(), process_time_ns(), self._ledger.events_now()
        waited = self._run_queue.waited_ns()
        if self._measuring(now):
            self._measured_waited_ns += waited - self._mark_waited_ns
            self._measured_ns += now - self._mark_ns
            self._measured_cpu_ns += cpu - self._mark_cpu_ns
            self._measured_events += events - self._mark_events
        self._mark_ns, self._mark_cpu_ns, self._mark_events, self._mark_waited_ns = now, cpu, events, waited

    def publish(self) -> None:
        """Writes the counters, the heartbeat last."""
        ledger = self._ledger
        values = {
            Counter.EVENTS: ledger.events_now(),
            Counter.STALE_RESENDS: sum(pool.stale_resends for pool in self._pools),
            Counter.CPU_NS: process_time_ns(),
            Counter.CPU_MEASURED_NS: self._measured_cpu_ns,
            Counter.MEASURED_NS: self._measured_ns,
            Counter.EVENTS_MEASURED: self._measured_events,
            Counter.LATE_RENDERS: sum(run.feed.late for run in self._runs),
            Counter.QUEUE_WAIT_NS: self._mark_waited_ns,
            Counter.QUEUE_WAIT_MEASURED_NS: self._measured_waited_ns,
            Counter.STOPPED_MEASURED_NS: self._measured_stopped_ns,
            Counter.CLOCK_BRACKET_NS: self._clock.width_ns,
            Counter.HEARTBEAT_NS: monotonic_ns(),
        }
        for counter, value in values.items():
            self._counters[int(counter)] = value
        ledger.segment.trim()
