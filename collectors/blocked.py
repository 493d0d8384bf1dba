"""How long a thread waits for something else than a CPU: for a disk, where it writes files and does nothing else."""

from __future__ import annotations

from time import monotonic_ns, thread_time_ns

from ..engine.process import RunQueue


class Blocked:
    """Adds up, over all uses as a context, the time that was neither CPU time nor a wait for a CPU. 6 us each."""

    def __init__(self) -> None:
        self.blocked_ns = 0
        self._run_queue = RunQueue()
        self._begun_ns = 0

    def _busy_ns(self) -> int:
        return thread_time_ns() + self._run_queue.waited_ns()

    def __enter__(self) -> None:
        self._begun_ns = monotonic_ns() - self._busy_ns()

    def __exit__(self, *_: object) -> None:
        self.blocked_ns += max(0, monotonic_ns() - self._busy_ns() - self._begun_ns)
