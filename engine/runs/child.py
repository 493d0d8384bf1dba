"""One child process of a run: started, watched through the supervisor's selector, stopped, reaped. Nothing here waits
for it but reap().

A death is an event like any other: the child's pidfd (pidfd_open(2)) becomes readable, the selector calls `on_exit`. A
SIGCHLD handler would race with the reads of the pipes, and poll() in a loop would notice a death 100 ms late.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import psutil

from ..frames import Frames, frame
from ..records.resume import budget_left, resume_point
from .control import Order, Share, Word

READ_BYTES: Final = 1 << 16


class Child:
    """A process that is started again after each death, on its own cores if it has some."""

    def __init__(self, selector: selectors.BaseSelector, cores: list[int]) -> None:
        self.cores = cores
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    @property
    def running(self) -> bool:
        """Started and not yet reaped."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The pid of the running process; 0 while there is none."""
        return self._process.pid if self._process else 0

    def start(
        self,
        command: Sequence[str],
        on_exit: Callable[[], None],
        *,
        environ: Mapping[str, str],
        output: IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts the command; both outputs go to `output`. Without one stdin and stdout are pipes, stderr is inherited."""
        self._process = process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL if output else subprocess.PIPE,
            stdout=output or subprocess.PIPE,
            stderr=output,
            env=environ,
            start_new_session=True,  # the terminal's Ctrl-C is the supervisor's to pass on
        )
        if self.cores:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process.pid).cpu_affinity(self.cores)
        self._pidfd = os.pidfd_open(process.pid)
        self._selector.register(self._pidfd, selectors.EVENT_READ, on_exit)
        return process

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def reap(self) -> int:
        """Waits for the end and closes everything; returns the exit code, -N for signal N."""
        process = self._process
        if process is None:
            return 0
        code = process.wait()
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if process.stdout is not None:
            process.stdout.close()
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        self._process = None
        return code


class WorkerChild(Child):
    """One worker through all its incarnations: its process, its segment, and how far it has got."""

    def __init__(self, selector: selectors.BaseSelector, index: int, cores: list[int]) -> None:
        super().__init__(selector, cores)
        self.index = index
        self.incarnation = -1
        self.ready = False
        self.gone = False  # ended, and not to be started again
        self.stopping = False
        self.consecutive_failures = 0  # deaths right after the start, without progress
        self.reached = (0, 0)  # (phase, slot) at which the next incarnation goes on
        self.started_ns = 0
        self.died_ns = 0  # 0 while it works
        self.begun: dict[int, Order] = {}
        self.phases_done: set[int] = set()
        self.budget_left: int | None = None  # pico-USD, once an incarnation has ended
        self._segment_fd = -1
        self._frames = Frames(Word)

    def segment(self, directory: Path) -> Path:
        return directory / f"worker-{self.index}.{self.incarnation}.ring"

    def open_segment(self, directory: Path) -> None:
        """Keeps the segment open, so that the resume point can be read even if somebody unlinks the file."""
        with suppress(FileNotFoundError):
            self._segment_fd = os.open(self.segment(directory), os.O_RDWR | os.O_CLOEXEC)

    def close_segment(self) -> None:
        if self._segment_fd >= 0:
            os.close(self._segment_fd)
            self._segment_fd = -1

    def last_segment(self, directory: Path) -> Path | None:
        """Where the dead incarnation's segment can be read; None if it died before it had one."""
        path = self.segment(directory)
        for unfinished in directory.glob(f".{path.name}.*"):
            unfinished.unlink(missing_ok=True)  # it died while it made its segment
        if self._segment_fd >= 0:
            return Path(f"/proc/self/fd/{self._segment_fd}")
        return path if path.exists() else None

    def launch(
        self,
        command: Sequence[str],
        on_exit: Callable[[], None],
        on_output: Callable[[], None],
        environ: Mapping[str, str],
    ) -> None:
        """Starts the incarnation that `incarnation` says, with nothing yet received from it."""
        self.ready = False
        self._frames = Frames(Word)
        stdout = self.start(command, on_exit, environ=environ).stdout
        if stdout is not None:
            os.set_blocking(stdout.fileno(), False)
            self._selector.register(stdout, selectors.EVENT_READ, on_output)

    def order_phase(self, order: Order) -> None:
        """Orders a phase, now or as soon as the worker is ready; it is remembered for the next incarnation."""
        self.begun[order.phase] = order
        if self.ready:
            self.send(order)

    def order_again(self) -> None:
        """After a restart: the phases that are not done go on, each where `resume_from` put its first slot."""
        for order in self.begun.values():
            if order.phase not in self.phases_done:
                self.send(order)

    def resume_from(self, segment: Path) -> bool:
        """Reads from the dead incarnation's segment where the next goes on; False if it did not get further.

        Never behind what an earlier incarnation reached: one that died before its first slot reports (0, 0), and slots
        that were sent already would be sent a second time.
        """
        point = resume_point(segment)
        moved = point > self.reached
        self.reached = phase, slot = max(point, self.reached)
        left = budget_left(segment)  # None if the worker died before writing it: then the previous value holds
        self.budget_left = self.budget_left if left is None else left
        for index, order in self.begun.items():
            if index == phase:
                order.first = max(order.first, slot)
            elif index < phase:
                self.phases_done.add(index)
        return moved

    def send(self, message: Share | Order) -> None:
        """Writes one message; a dead worker's is dropped, its exit is reported by the pidfd."""
        stdin = self._process.stdin if self._process else None
        if stdin is not None:
            with suppress(BrokenPipeError):
                stdin.write(frame(message))
                stdin.flush()

    def receive(self) -> list[Word]:
        """The messages that are complete now. Never blocks."""
        stdout = self._process.stdout if self._process else None
        if stdout is None:
            return []
        try:
            piece = os.read(stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return []
        if not piece:
            self._unwatch(stdout)
        return self._frames.feed(piece)

    def reap(self) -> int:
        if self._process is not None and self._process.stdout is not None:
            self._unwatch(self._process.stdout)
        return super().reap()

    def _unwatch(self, stdout: IO[bytes]) -> None:
        if stdout in self._selector.get_map():
            self._selector.unregister(stdout)


def ended(code: int) -> str:
    """How a process ended, in words: `signal SIGKILL` or `exit code 1`."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
