"""`lens recover RUN_DIR`: finishes the books of a run whose supervisor was killed, from what is left in tmpfs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import click
import psutil

from llm_latency_lens.cli.collect import collect
from llm_latency_lens.collectors.snapshot import Report
from llm_latency_lens.engine import ring
from llm_latency_lens.engine.errors import LensError, SegmentError
from llm_latency_lens.engine.manifest import FILE, SEGMENTS, Manifest, read_manifest
from llm_latency_lens.engine.rundir import LIVE, remove_segments
from llm_latency_lens.engine.runlog import note
from llm_latency_lens.exporters.json import SUMMARY, summary

GONE_WITHIN_S: Final = 10.0
DIED: Final = "died: the supervisor was killed"


@click.command("recover")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print summary.json on stdout.")
def recover(run_dir: Path, as_json: bool) -> None:
    """Finish the books of a killed run: requests in flight are counted as lost, and summary.json is written."""
    report = recover_run(run_dir)
    if as_json:
        click.echo(summary(report), nl=False)
    else:
        requests = report.requests
        click.echo(
            f"{run_dir}: {requests.sent} sent, {requests.ok} ok, {requests.failed.get('lost', 0)} lost; "
            f"verdict {report.verdict.state}; {run_dir / SUMMARY}"
        )


def recover_run(run_dir: Path, *, segments: Path | None = None) -> Report:
    """The final report. Removes the segment directory. Raises LensError if nothing is left or it still runs."""
    directory, manifest = find(run_dir, segments=segments or SEGMENTS)
    running = [f"{role} ({pid})" for role, pid in _alive(manifest) if role == "supervisor"]
    if running:
        raise LensError(f"{run_dir} is still running: {', '.join(running)}; stop it with Ctrl-C or SIGTERM")
    _wait_until_gone(manifest)
    _close(directory, manifest)
    note(run_dir, "recovered", was=manifest.stop_reason)
    report = collect(directory)
    remove_segments(run_dir, directory)
    return report


def find(run_dir: Path, *, segments: Path = SEGMENTS) -> tuple[Path, Manifest]:
    """The segment directory of a run, by the run directory that its manifest names."""
    live = run_dir / LIVE
    if (live / FILE).exists():
        return live.resolve(), read_manifest(live)
    wanted = run_dir.resolve()
    for manifest_file in sorted(segments.glob(f"*/{FILE}")):
        manifest = read_manifest(manifest_file.parent)
        if Path(manifest.run_dir).resolve() == wanted:
            return manifest_file.parent, manifest
    if (run_dir / SUMMARY).exists():
        raise LensError(f"{run_dir} is whole: it has its {SUMMARY} and nothing is left in {segments}")
    raise LensError(f"nothing of {run_dir} is left in {segments}: it was removed, or the machine was restarted since")


def _alive(manifest: Manifest) -> list[tuple[str, int]]:
    """The run's processes that still are. A pid that now belongs to another program does not count."""
    return [(role, pid) for role, pid in manifest.pids.items() if _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        ours = any("llm_latency_lens" in word or "lens" in Path(word).name for word in process.cmdline())
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait_until_gone(manifest: Manifest) -> None:
    """Workers and collector die with their supervisor; the kernel may need a moment."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := _alive(manifest):
        if time.monotonic() > deadline:
            raise LensError(f"still running: {', '.join(f'{role} ({pid})' for role, pid in left)}; kill them first")
        time.sleep(0.05)


def _close(directory: Path, manifest: Manifest) -> None:
    """Says what the supervisor could not say any more: these workers are dead, the run is over, and when it was."""
    last_sign = 0
    for path in sorted(directory.glob("worker-*.ring")):
        try:
            reader = ring.SegmentReader.open(path)
        except SegmentError:
            continue  # its worker died while it made it: nothing is in it
        last_sign = max(last_sign, reader.counters()[ring.Counter.HEARTBEAT_NS])
        done = reader.state == ring.State.DONE
        reader.close()
        if not done:
            ring.mark_dead(path)
    if manifest.state == "finished":
        return
    for times in manifest.phases:
        if times.start_ns and last_sign:
            times.end_ns = max(times.start_ns, min(times.end_ns or last_sign, last_sign))
        times.planned = None  # what the plan wanted was not run; the slots that were are in the books
    manifest.state, manifest.stop_reason = "finished", manifest.stop_reason or DIED
    manifest.write(directory)
