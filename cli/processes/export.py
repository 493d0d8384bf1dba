"""The exporter process: `python -m llm_latency_lens.cli.processes.export --run-dir DIR`, beside a run that has network exports.

It gets the plan, secrets included, as one frame on stdin, follows the run's tick log and ends when summary.json is there
and everything is delivered, or the wait for an absent destination is over, or its run was killed. What it could not
deliver is in the cursors of the run directory (exporters.spool.tail) and in `export.log`. It shares nothing with workers
and collector but the disk: a destination that hangs, refuses or floods changes no measured latency.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Final

from ...collectors.snapshot import Snapshot
from ...engine.errors import LensError
from ...engine.frames import frame, read_frame
from ...engine.plan.plan import SECOND, Export, OtlpExport, Plan, Pushed
from ...engine.plan.written import secrets
from ...engine.process import environ_without_keys
from ...engine.runs.rundir import EXPORT_LOG, INTERVALS, SPANS
from ...engine.runs.runlog import note
from ...exporters import destination_of, span_destination_of
from ...exporters.backoff import backoff_s
from ...exporters.span_log import DECODE, SpanRow
from ...exporters.spool.tail import MAX_PENDING_BYTES, LineTail, Pump, Tail, Unavailable, cursor_path, cursors

SPAN_KIND: Final = "otlp-spans"  # in the name of their cursor
GIVE_UP_S: Final = 60.0
LINGER_S: Final = 20.0
PATIENCE_S: Final = 3.0  # after that the console says that the end waits for an export
ORPHAN_S: Final = 2.0  # for what is already on disk, once the run's supervisor was killed


def models_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Provider and model of each target."""
    return {target.name: (target.provider, target.model) for target in plan.targets}


def check_exports(plan: Plan, run_id: str, *, running: Plan | None = None) -> list[str]:
    """Before any load: a wrong token, bucket, URL or port raises LensError; the warnings say what is merely down.

    What the `running` plan exports already is not checked again: its page listens on that port now.
    """
    warnings = []
    known = {(export.kind, export.url) for export in running.export} if running else set()
    for export in plan.export:
        if (export.kind, export.url) in known:
            continue
        destination = destination_of(export, name=plan.name, models=models_of(plan))
        try:
            destination.check(run_id)
        except Unavailable as error:
            warnings.append(f"{destination.name} {error}; its ticks wait on disk and follow when it is back")
        finally:
            destination.close()
    return warnings


def exporter_of(plan: Plan, run_dir: Path) -> subprocess.Popen[bytes]:
    """Starts the exporter process of one run and sends it the plan."""
    module = [sys.executable, "-m", "llm_latency_lens.cli.processes.export"]
    command = [*module, "--run-dir", str(run_dir), "--parent", str(os.getpid())]
    environ = environ_without_keys(os.environ, frozenset(secrets(plan)))
    with (run_dir / EXPORT_LOG).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, start_new_session=True
        )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(frame(plan))
    return process


class Exporter:
    """The exporter process beside a run, if its plan has network exports. Nobody waits for it before `finish`."""

    def __init__(self, plan: Plan, run_dir: Path) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._process = exporter_of(plan, run_dir) if plan.export else None
        self._failures = 0
        self._start_at: float | None = None  # of the next process, once one has ended

    def restart_if_ended(self) -> bool:
        """Called often while the run goes on: starts it again after it died, later each time. True if it did just now.

        Its cursors know what was delivered, so nothing is lost or sent twice.
        """
        if self._process is None:
            return False
        if self._start_at is None:
            code = self._process.poll()
            if not code:
                return False
            self._failures += 1
            pause_s = backoff_s(self._failures, first_s=1.0)
            self._start_at = monotonic() + pause_s
            note(self._run_dir, "exporter_died", code=code, restarts_in_s=round(pause_s, 1))
        if monotonic() < self._start_at:
            return False
        self._start_at = None
        self._process = exporter_of(self._plan, self._run_dir)
        return True

    def finish(self) -> None:
        """Waits until everything is delivered or the wait for an absent destination is over; prints what was not."""
        if self._process is None:
            return
        if self._process.poll():  # it died on the way: its cursors know where
            self._process = exporter_of(self._plan, self._run_dir)
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        if process.poll() is None:
            why = next((cursor.error for cursor in cursors(self._run_dir).values() if cursor.error), "the last scrape")
            print(f"lens: waiting up to {GIVE_UP_S:g} s for an export: {why}", file=sys.stderr)
        try:
            process.wait(GIVE_UP_S + LINGER_S + 10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            end(process)
        for name, cursor in cursors(self._run_dir).items():
            if cursor.dropped or cursor.rejected or cursor.error:
                what = "spans" if SPAN_KIND in name else "ticks"
                kept = f"{cursor.delivered:,} {what} delivered, {cursor.dropped + cursor.rejected:,} lost"
                print(
                    f"lens: {name.strip('.').removesuffix('.json')}: {kept}; last error: {cursor.error}; "
                    f"`lens report {self._run_dir} --to URL` sends all of them again",
                    file=sys.stderr,
                )

    def abandon(self) -> None:
        """The run did not come to its end, and its ticks neither."""
        if self._process is not None:
            end(self._process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL if that is not enough."""
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def deliver(plan: Plan, run_dir: Path, *, parent: int, give_up_s: float = GIVE_UP_S) -> bool:
    """Follows the run until it has ended and all is delivered; False if something was not.

    `parent` is the pid of the starter: once that one is gone, nobody will write the summary that this process waits for.
    """
    pumps: list[Pump[Snapshot] | Pump[SpanRow]] = []
    for index, export in enumerate(plan.export):
        pumps.append(_pump(export, index, plan, run_dir, give_up_s))
        if isinstance(export, OtlpExport) and export.spans:
            pumps.append(_span_pump(export, index, plan, run_dir, give_up_s))
    threads: list[threading.Thread] = []
    results: dict[int, bool] = {}
    for number, pump in enumerate(pumps):
        thread = threading.Thread(target=_run, args=(pump, number, results), name=pump.destination.name, daemon=True)
        threads.append(thread)
        thread.start()
    orphaned: float | None = None
    while any(thread.is_alive() for thread in threads):
        next((thread for thread in threads if thread.is_alive()), threads[0]).join(0.25)
        if os.getppid() != parent:
            orphaned = orphaned or monotonic()
            if monotonic() - orphaned > ORPHAN_S:
                break
    for pump in pumps:
        pump.stop.set()
        if orphaned is None:
            pump.destination.linger(LINGER_S)
        pump.destination.close()
    return all(results.get(index, False) for index in range(len(pumps)))


def _span_pump(export: OtlpExport, index: int, plan: Plan, run_dir: Path, give_up_s: float) -> Pump[SpanRow]:
    """The same way for the requests that become spans: a log, a cursor, a destination."""
    pending = export.spool_max_bytes or MAX_PENDING_BYTES
    cursor = cursor_path(run_dir, index, SPAN_KIND)
    return Pump(
        LineTail(run_dir / SPANS, cursor, DECODE, max_pending_bytes=pending),
        span_destination_of(export, name=plan.name, models=models_of(plan)),
        run_dir=run_dir,
        give_up_s=give_up_s,
        interval_s=export.interval_ns / SECOND,
        log=lambda line: print(line, flush=True),
    )


def _pump(export: Export, index: int, plan: Plan, run_dir: Path, give_up_s: float) -> Pump[Snapshot]:
    pushed = export if isinstance(export, Pushed) else Pushed(url=export.url)
    destination = destination_of(export, name=plan.name, models=models_of(plan))
    cursor = cursor_path(run_dir, index, export.kind) if destination.keeps_cursor else None
    tail = Tail(run_dir / INTERVALS, cursor, max_pending_bytes=pushed.spool_max_bytes or MAX_PENDING_BYTES)
    return Pump(
        tail,
        destination,
        run_dir=run_dir,
        give_up_s=give_up_s,
        interval_s=pushed.interval_ns / SECOND,
        log=lambda line: print(line, flush=True),
    )


def _run(pump: Pump[Snapshot] | Pump[SpanRow], index: int, results: dict[int, bool]) -> None:
    results[index] = pump.run()


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="python -m llm_latency_lens.cli.processes.export")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--give-up", type=float, default=GIVE_UP_S, help="seconds to wait for an absent destination")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="pid of the run that this process ends with")
    options = parser.parse_args(arguments)
    try:
        plan = read_frame(0, Plan)
        return 0 if deliver(plan, options.run_dir, parent=options.parent, give_up_s=options.give_up) else 1
    except EOFError:
        return 1  # the starter died before it had sent the plan
    except LensError as error:
        print(f"lens: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
