"""`lens recover`: what dead runs left in tmpfs. Their reports are completed from it, or it is removed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final

import click

from ..collectors.snapshot import Report
from ..engine.errors import LensError, SegmentError
from ..engine.files import UNDECODABLE
from ..engine.hosts.driver import FOLDER as HOSTS
from ..engine.hosts.files import own_run, own_runs
from ..engine.hosts.relay import FOLDER as TICKS
from ..engine.hosts.relay import TickFolder, incoming
from ..engine.records.layout import Counter, State
from ..engine.records.reader import SegmentReader
from ..engine.records.resume import mark_dead
from ..engine.runs.manifest import FILE, SEGMENTS, HostState, Manifest, read_manifest
from ..engine.runs.rundir import LIVE, SETTLING_S, SUMMARY, Leftover, alive, leftovers, remove_segments
from ..engine.runs.runlog import note
from ..exporters.json import summary
from ..exporters.rundir import damage_named
from .processes.collect import collect

GONE_WITHIN_S: Final = 10.0
DIED: Final = "died: the supervisor was killed"


@click.command("recover")
@click.argument("run_dir", type=click.Path(path_type=Path), required=False)
@click.option("--all", "every", is_flag=True, help="Complete the report of every dead run.")
@click.option("--remove", metavar="RUN_ID", help="Throw away what a dead run left in tmpfs; its run directory stays.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary.json of RUN_DIR on stdout.")
def recover(run_dir: Path | None, every: bool, remove: str | None, as_json: bool) -> int:
    """Complete a killed run: requests in flight are counted as lost, and summary.json is written.

    Without an argument it lists what runs, alive and dead, have in tmpfs.
    """
    if sum((run_dir is not None, every, remove is not None)) > 1:
        raise click.UsageError("RUN_DIR, --all and --remove exclude each other")
    if as_json and run_dir is None:
        raise click.UsageError("--json needs RUN_DIR")
    os.umask(0o077)  # as in the run
    if run_dir is not None:
        report = recover_run(run_dir, segments=SEGMENTS)
        click.echo(summary(report) if as_json else in_one_line(run_dir, report), nl=not as_json)
        return 0
    if every:
        return recover_all(leftovers(SEGMENTS))
    if remove is not None:
        click.echo(remove_run(remove, leftovers(SEGMENTS)))
        return 0
    for line in listed(leftovers(SEGMENTS)):
        click.echo(line)
    return 0


def recover_run(run_dir: Path, *, segments: Path | None = None) -> Report:
    """The final report. Removes the segment directory. Raises LensError if nothing is left or it still runs."""
    return finish(find(run_dir, segments=segments or SEGMENTS))


def finish(directory: Path) -> Report:
    """The same from a segment directory."""
    try:
        manifest = read_manifest(directory)
    except UNDECODABLE as error:
        raise LensError(
            f"{directory / FILE} is damaged, or of another version of lens, which can recover it: {error}"
        ) from error
    run_dir = Path(manifest.run_dir)
    running = [f"{role} ({pid})" for role, pid in alive(manifest.pids) if role == "supervisor"]
    if running:
        raise LensError(f"{run_dir} is still running: {', '.join(running)}; stop it with Ctrl-C or SIGTERM")
    _wait_until_gone(manifest)
    with damage_named(directory):
        _close(directory, manifest)
        note(run_dir, "recovered", was=manifest.stop_reason)
        report = collect(directory)
    remove_segments(run_dir, directory)
    return report


def recover_all(found: list[Leftover]) -> int:
    """Completes every dead run; returns 1 if any could not be."""
    code = 0
    for left in found:
        if left.alive:
            continue
        try:
            if left.head is None:
                raise _never_began(left.run_id)
            click.echo(in_one_line(Path(left.head.run_dir), finish(left.directory)))
        except LensError as error:
            click.echo(f"lens: {left.run_id}: {error}", err=True)
            code = 1
    return code


def _never_began(run_id: str) -> LensError:
    return LensError(f"it died before it had begun; `lens recover --remove {run_id}` clears it away")


def remove_run(run_id: str, found: list[Leftover]) -> str:
    """Removes a dead run's segment directory; returns what to print. Raises LensError if there is none, or if it is still running."""
    left = next((each for each in found if each.run_id == run_id), None)
    if left is None:
        raise LensError(f"{run_id!r} is no run in {SEGMENTS}; `lens recover` lists them")
    if left.alive:
        raise LensError(f"{run_id} is still running")
    megabytes = left.bytes() / 1e6
    remove_segments(Path(left.head.run_dir) if left.head else left.directory, left.directory)
    return f"removed {left.directory}, {megabytes:.1f} MB"


def listed(found: list[Leftover]) -> list[str]:
    """The table of what is in tmpfs, and what can be done about the dead."""
    if not found:
        return [f"nothing is left in {SEGMENTS}"]
    rows = [("RUN", "STARTED", "STATE", "MB", "RUN DIRECTORY")]
    for left in found:
        started = left.head.started_at[:19] + "Z" if left.head else "-"
        state = "alive" if left.alive else "dead"
        run_dir = left.head.run_dir if left.head else "-"
        rows.append((left.run_id, started, state, f"{left.bytes() / 1e6:.1f}", run_dir))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d:>{widths[3]}}  {e}" for a, b, c, d, e in rows]
    if not all(left.alive for left in found):
        lines += [
            "",
            "lens recover RUN_DIR, or --all       completes the reports of the dead",
            "lens recover --remove RUN            throws away what is left of it",
        ]
    return lines


def in_one_line(run_dir: Path, report: Report) -> str:
    """A recovered run in one line."""
    requests = report.requests
    return (
        f"{run_dir}: {requests.sent} sent, {requests.ok} ok, {requests.failed.get('lost', 0)} lost; "
        f"verdict {report.verdict.state}; {run_dir / SUMMARY}"
    )


def find(run_dir: Path, *, segments: Path = SEGMENTS) -> Path:
    """The segment directory of a run, by the run directory that its manifest names. Raises LensError, with what is left."""
    live = run_dir / LIVE
    if (live / FILE).exists():
        return live.resolve()
    wanted = run_dir.resolve()
    found = leftovers(segments)
    for left in found:
        if left.head is not None and Path(left.head.run_dir).resolve() == wanted:
            return left.directory
    if (run_dir / SUMMARY).exists():
        raise LensError(f"{run_dir} is complete: it has its {SUMMARY} and nothing is left in {segments}")
    for left in found:
        if left.head is None and left.run_id == wanted.name:
            if left.alive:
                raise LensError(f"{run_dir} is just starting; if it was killed, try again in {SETTLING_S:g} s")
            raise _never_began(left.run_id)
    raise LensError(f"nothing of {run_dir} is left in {segments}: it was removed, or the machine was restarted since")


def _wait_until_gone(manifest: Manifest) -> None:
    """Workers and collector die with their supervisor; the kernel may need a moment."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := alive(manifest.pids):
        if time.monotonic() > deadline:
            raise LensError(f"still running: {', '.join(f'{role} ({pid})' for role, pid in left)}; kill them first")
        time.sleep(0.05)


def _close(directory: Path, manifest: Manifest) -> None:
    """Records what the supervisor no longer could: these workers are dead, the run is over, and since when."""
    last_sign = 0
    for path in sorted(directory.glob("worker-*.ring")):
        try:
            reader = SegmentReader.open(path)
        except SegmentError:
            continue  # its worker died while it made it: nothing is in it
        last_sign = max(last_sign, reader.counters()[Counter.HEARTBEAT_NS])
        done = reader.state == State.DONE
        reader.close()
        if not done:
            mark_dead(path)
    if manifest.state == "finished":
        return
    for index, host in enumerate(manifest.hosts):
        take_over(manifest, host, TickFolder(incoming(directory, index)))
        if host.state in ("starting", "running"):
            host.state, host.why = "lost", "the driver was killed"
        last_sign = max(last_sign, _sign_of(manifest, host))
    for times in manifest.phases:
        if times.start_ns and last_sign:
            times.end_ns = max(times.start_ns, min(times.end_ns or last_sign, last_sign))
        times.planned = None  # what the plan wanted was not run; the slots that were are in the segments
    manifest.state, manifest.stop_reason = "finished", manifest.stop_reason or DIED
    manifest.write(directory)


def take_over(manifest: Manifest, host: HostState, folder: TickFolder) -> None:
    """Takes the files and last ticks of a host that ended without its driver: those in the run directory's hosts/NAME,
    where somebody has copied them, or those of a host on this machine."""
    mine = Path(manifest.run_dir) / HOSTS / host.name
    left = own_runs() / own_run(manifest.run_id, host.name)
    if not mine.exists() and (left / SUMMARY).exists():
        mine.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.move(left, mine)
    ticks = TickFolder(mine / TICKS)
    for number in ticks.numbers():
        folder.put(number, ticks.read(number))
        host.last_tick = max(host.last_tick, number)
    shutil.rmtree(ticks.folder, ignore_errors=True)


def _sign_of(manifest: Manifest, host: HostState) -> int:
    """The end of the last tick that came from a host of a driver's run."""
    start_ns = manifest.phases[0].start_ns
    return start_ns + (host.last_tick + 1) * manifest.plan.output.tick_ns if start_ns else 0
