"""The exporter process: `python -m llm_latency_lens.cli.processes.export --run-dir DIR`, beside a run that has network exports.

It gets the plan, secrets included, as one length-prefixed msgpack frame on stdin, follows the run's tick log and ends
when summary.json is there and everything is delivered, or the wait for an absent destination is over. What it could not
deliver is in the cursors of the run directory (exporters.tail) and in `export.log`. It shares nothing with workers and
collector but the disk: a destination that hangs, refuses or floods changes no measured latency.
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

from ...engine.errors import LensError
from ...engine.plan.plan import DECODER, ENCODER, SECOND, Export, InfluxExport, Plan, PrometheusExport, Pushed
from ...exporters.spool.tail import LOG, MAX_PENDING_BYTES, Destination, Pump, Tail, Unavailable, cursor_path, cursors

HEAD_BYTES: Final = 4
GIVE_UP_S: Final = 60.0
LINGER_S: Final = 20.0
PATIENCE_S: Final = 3.0  # before anybody is told that the end waits for an export
ORPHAN_S: Final = 30.0


def models_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Provider and model of each target."""
    return {target.name: (target.provider, target.model) for target in plan.targets}


def destination_of(export: Export, *, name: str, models: dict[str, tuple[str, str]]) -> Destination:
    """The exporter of one entry. Loads its library, opens no connection but a page's port."""
    if isinstance(export, InfluxExport):
        from ...exporters.influxdb import InfluxDB

        return InfluxDB(export, name=name)
    if isinstance(export, PrometheusExport):
        from ...exporters.prometheus import Prometheus

        return Prometheus(export, name=name, models=models).start()
    from ...exporters.otlp import Otlp

    return Otlp(export, name=name, models=models)


def check_exports(plan: Plan, run_id: str) -> list[str]:
    """Before any load: a wrong token, bucket, URL or port raises LensError; the warnings tell what is merely down."""
    warnings = []
    for export in plan.export:
        destination = destination_of(export, name=plan.name, models=models_of(plan))
        try:
            check = getattr(destination, "check", None)
            if check:
                check(run_id)
        except Unavailable as error:
            warnings.append(f"{destination.name} {error}; its ticks wait on disk and follow when it is back")
        finally:
            destination.close()
    return warnings


def exporter_of(plan: Plan, run_dir: Path) -> subprocess.Popen[bytes]:
    """Starts the exporter process of one run and hands it the plan."""
    command = [sys.executable, "-m", "llm_latency_lens.cli.processes.export", "--run-dir", str(run_dir)]
    with (run_dir / "export.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    body = ENCODER.encode(plan)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(len(body).to_bytes(HEAD_BYTES, "little") + body)
    return process


class Exporter:
    """The exporter process beside a run, if its plan has network exports. Nobody waits for it before `finish`."""

    def __init__(self, plan: Plan, run_dir: Path) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._process = exporter_of(plan, run_dir) if plan.export else None

    def finish(self) -> None:
        """Waits until everything is delivered or the wait for an absent destination is over; says what was not."""
        process = self._process
        if process is None:
            return
        if process.poll():  # it died on the way: its cursors know where
            process = exporter_of(self._plan, self._run_dir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        if process.poll() is None:
            why = next((cursor.error for cursor in cursors(self._run_dir).values() if cursor.error), "the last scrape")
            print(f"lens: waiting up to {GIVE_UP_S:g} s for an export: {why}", file=sys.stderr)
        try:
            process.wait(GIVE_UP_S + LINGER_S + 10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            _end(process)
        for name, cursor in cursors(self._run_dir).items():
            if cursor.dropped or cursor.rejected or cursor.error:
                kept = f"{cursor.delivered:,} ticks delivered, {cursor.dropped + cursor.rejected:,} lost"
                print(
                    f"lens: {name.strip('.').removesuffix('.json')}: {kept}; last error: {cursor.error}; "
                    f"`lens report {self._run_dir} --to URL` tells all of them again",
                    file=sys.stderr,
                )

    def abandon(self) -> None:
        """The run did not come to its end, and its ticks neither."""
        if self._process is not None:
            _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def read_plan(fd: int) -> Plan:
    """The frame on `fd`, to its end."""
    with os.fdopen(fd, "rb", closefd=False) as stream:
        size = int.from_bytes(stream.read(HEAD_BYTES), "little")
        return DECODER.decode(stream.read(size))


def deliver(plan: Plan, run_dir: Path, *, give_up_s: float = GIVE_UP_S) -> bool:
    """Follows the run until it has ended and all is delivered; False if something was not."""
    pumps: list[Pump] = []
    results: dict[int, bool] = {}
    threads: list[threading.Thread] = []
    for index, export in enumerate(plan.export):
        pump = _pump(export, index, plan, run_dir, give_up_s)
        thread = threading.Thread(target=_run, args=(pump, index, results), name=export.kind, daemon=True)
        pumps.append(pump)
        threads.append(thread)
        thread.start()
    parent, orphaned = os.getppid(), None
    while any(thread.is_alive() for thread in threads):
        next((thread for thread in threads if thread.is_alive()), threads[0]).join(0.25)
        if os.getppid() != parent:  # the run's supervisor was killed: `lens recover` ends the books, nobody else comes
            orphaned = orphaned or monotonic()
            if monotonic() - orphaned > ORPHAN_S:
                break
    for pump in pumps:
        pump.stop.set()
        linger = getattr(pump.destination, "linger", None)
        if linger:
            linger(LINGER_S)
        pump.destination.close()
    return all(results.get(i, False) for i in range(len(pumps)))


def _pump(export: Export, index: int, plan: Plan, run_dir: Path, give_up_s: float) -> Pump:
    # A page's sums live in memory: it reads the log from the start in every life.
    cursor = None if export.kind == "prometheus" else cursor_path(run_dir, index, export.kind)
    pushed = export if isinstance(export, Pushed) else Pushed(url=export.url)
    tail = Tail(run_dir / LOG, cursor, max_pending_bytes=pushed.spool_max_bytes or MAX_PENDING_BYTES)
    return Pump(
        tail,
        destination_of(export, name=plan.name, models=models_of(plan)),
        run_dir=run_dir,
        give_up_s=give_up_s,
        interval_s=pushed.interval_ns / SECOND,
        log=lambda line: print(line, flush=True),
    )


def _run(pump: Pump, index: int, results: dict[int, bool]) -> None:
    results[index] = pump.run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llm_latency_lens.cli.processes.export")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--give-up", type=float, default=GIVE_UP_S, help="seconds to wait for an absent destination")
    chosen = parser.parse_args(arguments)
    try:
        plan = read_plan(0)
        return 0 if deliver(plan, chosen.run_dir, give_up_s=chosen.give_up) else 1
    except LensError as error:
        print(f"lens: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
