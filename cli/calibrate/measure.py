"""One run of the calibration: a simulator with its log, a real run against it in processes of its own, the comparison.

The run is what `lens probe` starts too: supervisor, worker, collector and tap, by cli.launch. Stalls are SIGSTOP and
SIGCONT of its worker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import monotonic, monotonic_ns, sleep
from typing import Final, NamedTuple

import msgspec

from ...collectors.calibration.truth import Errors, Served, errors_of
from ...collectors.snapshot import Report
from ...engine.errors import LensError
from ...engine.files import UNDECODABLE
from ...engine.frames import frame
from ...engine.runs.manifest import SEGMENTS, Manifest, read_manifest
from ...engine.runs.rundir import run_id_of
from ...exporters.rundir import read_report, requests
from ..probe.run_process import RunOrder
from ..simulated import simulator
from .conditions import MEASURED, Conditions, plan_of, simulator_flags

STALL_S: Final = 0.03
STALL_EVERY_S: Final = 0.2
POLL_S: Final = 0.01
RUN_TIMEOUT_S: Final = 60.0
RUN: Final = (sys.executable, "-m", "llm_latency_lens.cli.probe.run_process")


class Measured(NamedTuple):
    """A run that is over. `server_late_ms`: how far the simulator fell behind its own schedule in the median request."""

    report: Report
    errors: Errors
    server_late_ms: float


def measure(
    conditions: Conditions,
    *,
    seconds: float,
    core: int | None,
    stamps: str = "auto",
    timeout_s: float = RUN_TIMEOUT_S,
) -> Measured:
    """Carries out one run under these conditions, with the simulator on `core`. Raises LensError."""
    with tempfile.TemporaryDirectory(prefix="lens-calibrate-") as folder:
        log = Path(folder) / "simulator.jsonl"
        with simulator(*simulator_flags(conditions, log, core)) as simulated:
            plan = plan_of(conditions, simulated.base_url, Path(folder), seconds=seconds, stamps=stamps)
            order = RunOrder(plan, run_id_of(plan.name), 0)
            watch = Watch(SEGMENTS / order.run_id, stalls=conditions.client_stalls)
            carry_out(order, watch, timeout_s)
        run_dir = Path(folder) / order.run_id
        anchors = watch.manifest
        truth = served(log)
        errors = errors_of(
            requests(run_dir),
            truth,
            wall_offset_ns=anchors.anchor_wall_ns - anchors.anchor_mono_ns,
            phase=MEASURED,
        )
        late_ms = median(row.max_lateness_ns for row in truth.values()) / 1e6 if truth else 0.0
        return Measured(read_report(run_dir), errors, late_ms)


def served(log: Path) -> dict[str, Served]:
    """The simulator's log by request id."""
    decode = msgspec.json.Decoder(Served).decode
    with log.open("rb") as lines:
        return {row.id: row for row in map(decode, lines)}


def carry_out(order: RunOrder, watch: Watch, timeout_s: float) -> None:
    """Starts the run and waits for its end; ends it when this process is interrupted. Raises LensError."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(RUN, stdin=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                process.stdin.write(frame(order))
                process.stdin.flush()
            deadline = monotonic() + timeout_s
            while process.poll() is None:
                watch.look()
                if monotonic() > deadline:
                    raise LensError(
                        f"a run of the calibration did not end within {timeout_s:.0f} s; the machine is overloaded"
                    )
                sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()  # its children end with it
                process.wait()
                shutil.rmtree(SEGMENTS / order.run_id, ignore_errors=True)  # nobody will recover it
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            why = lines[-1].removeprefix("lens: ") if lines else f"exit code {process.returncode}"
            raise LensError(f"a run of the calibration failed: {why}")


class Watch:
    """Looks at a run every few ms: where its clocks are anchored, and when to stall the worker."""

    def __init__(self, segment_dir: Path, *, stalls: bool) -> None:
        self._segment_dir = segment_dir
        self._stalls = stalls
        self._found: Manifest | None = None
        self._next_stall_ns = 0

    @property
    def manifest(self) -> Manifest:
        """Raises LensError if the run ended before it began."""
        if self._found is None:
            raise LensError("a run of the calibration ended before it began")
        return self._found

    def look(self) -> None:
        """Does what is due; returns at once, or after a stall."""
        if self._found is None:
            with contextlib.suppress(FileNotFoundError, *UNDECODABLE):
                manifest = read_manifest(self._segment_dir)
                if manifest.phases[-1].start_ns:
                    self._found = manifest
            return
        times, now = self._found.phases[-1], monotonic_ns()
        if not times.start_ns <= now < times.end_ns:
            return
        if self._stalls and now >= self._next_stall_ns:
            self._next_stall_ns = now + int(STALL_EVERY_S * 1e9)
            with stopped(self._found.pids["worker-0"]):
                sleep(STALL_S)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is stopped (SIGSTOP) in the `with` block and goes on afterwards."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
