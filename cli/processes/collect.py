"""The collector process: `python -m llm_latency_lens.cli.processes.collect --segment-dir DIR`. Joins collector and files.

Started by the supervisor; can be run by hand on any segment directory. Everything it needs is in run.json, no secret
among it. Ends by itself, with 0, when the run is finished and summary.json is written; with 1 if it cannot be written.
SIGINT and SIGTERM are for the supervisor: this process goes on until the run is finished.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from ...collectors.calibration.stored import load
from ...collectors.collector import Collector, Sink
from ...collectors.cost import prices_of
from ...collectors.hosts.tick import TickRelay
from ...collectors.slos import judge_slos
from ...collectors.snapshot import Report
from ...engine.errors import LensError
from ...engine.files import lock_of
from ...engine.hosts.relay import FOLDER as TICKS
from ...engine.hosts.relay import TickFolder
from ...engine.process import die_with_parent
from ...engine.runs.manifest import Manifest, read_manifest
from ...engine.runs.rundir import LOCK
from ...engine.workload.tokenizer import tokenizer_of
from ...exporters.hdr.write import IntervalHistograms, write_totals
from ...exporters.json import IntervalLog, write_summary
from ...exporters.msgpack import RequestLog
from ...exporters.span_log import SpanLog
from ...exporters.token_times import chooser

_M_MMAP_THRESHOLD: Final = -3  # of <malloc.h>
_ARRAY_BYTES: Final = 128 << 10


def collector_of(segment_dir: Path) -> Collector:
    """The collector of a run with the files that its plan asks for. Raises LensError, FileNotFoundError."""
    manifest = read_manifest(segment_dir)
    workload = manifest.plan.workload
    return Collector(
        segment_dir,
        sinks=sinks_of(manifest),
        prices=prices_of(manifest.plan),
        slos=judge_slos(manifest.plan.slo),
        count_tokens=counter_of(workload.tokenizer) if workload.count_tokens and workload.tokenizer else None,
        relay=TickRelay(TickFolder(segment_dir / TICKS), manifest.host) if manifest.workers_total else None,
        calibration=load(manifest.host.get("host_hash", ""), manifest.version, os.environ).calibration,
    )


def counter_of(tokenizer: str) -> Callable[[str], int]:
    """Counts the tokens of a text. The tokenizer is loaded by the first one, where the collector survives its failure."""
    load = cache(tokenizer_of)
    return lambda text: load(tokenizer)(text)


def sinks_of(manifest: Manifest) -> list[Sink]:
    run_dir, output = Path(manifest.run_dir), manifest.plan.output
    sinks: list[Sink] = [IntervalLog(run_dir), IntervalHistograms(run_dir)]
    if output.records and not manifest.hosts:  # each host has the rows of its own requests
        timed = chooser(output.token_times, manifest.plan.seed)
        sinks.append(RequestLog(run_dir, max_bytes=output.records_max_bytes, timed=timed))
    if manifest.plan.span_share:
        sinks.append(SpanLog(run_dir))
    return sinks


def collect(segment_dir: Path) -> Report:
    """Runs the collector to the end of the run and writes summary.json. Raises LensError."""
    try:
        lock = lock_of(segment_dir / LOCK)
    except BlockingIOError as error:
        raise LensError(f"another collector works on {segment_dir}") from error
    with lock:
        collector = collector_of(segment_dir)
        report = collector.run()
        manifest = read_manifest(segment_dir)
        run_dir = Path(manifest.run_dir)
        write_totals(run_dir, collector.totals.run, manifest, report.run.duration_s)
        write_summary(run_dir, report)
        return report


def return_memory() -> None:
    """Returns a tick's larger arrays to the system when they are freed: memory stays constant over weeks (benches.week).
    Without it glibc raises this threshold by itself and keeps the fragments (mallopt(3))."""
    with suppress(AttributeError):  # another libc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _ARRAY_BYTES)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llm_latency_lens.cli.processes.collect", description=__doc__)
    parser.add_argument("--segment-dir", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="end at once if this is not the parent's pid any more")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)  # the rings and the checkpoint outlive this process
    return_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        collect(options.segment_dir)
    except LensError as error:
        print(f"lens: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
