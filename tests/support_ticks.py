"""Simulated requests through the real collector, tick by tick, killed where a test says so."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_latency_lens.cli.processes.collect import collector_of
from llm_latency_lens.collectors.rings import GRACE_NS
from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER, Report, Snapshot
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.records.layout import Geometry
from llm_latency_lens.engine.records.writer import SegmentWriter
from tests.support_collector import MS, SECOND, START, fields, manifest, values

Floats = npt.NDArray[np.float64]


def rows_of(arrival_s: Floats, ttft_s: Floats, *, targets: int = 1, **given: Any) -> list[dict[str, int]]:
    """An ok request for each arrival, sent in time: its first token after `ttft_s`, its end 101 ms later."""
    rows = []
    for request, (arrival, ttft) in enumerate(zip(arrival_s.tolist(), ttft_s.tolist(), strict=True)):
        send = START + round(arrival * SECOND)
        first = send + round(ttft * SECOND)
        rows.append(
            fields(
                request=request,
                target=request % targets,
                intended_ns=send,
                send_ns=send,
                last_send_ns=send,
                headers_ns=first,
                first_event_ns=first,
                first_token_ns=first,
                first_output_ns=first,
                last_token_ns=first + 100 * MS,
                end_ns=first + 101 * MS,
                **given,
            )
        )
    return rows


def collected(
    root: Path,
    run_plan: Plan,
    rows: Iterable[dict[str, int]],
    *,
    killed_after: Collection[int] = (),
    rebased_after: Collection[int] = (),
    **given: Any,
) -> tuple[Report, list[Snapshot]]:
    """The final report of a run of these records, and its ticks.

    After the ticks `killed_after` a new collector goes on, as after a SIGKILL; after `rebased_after` the checkpoint is
    written anew, as it is when its deltas outgrow it.
    """
    segments, run_dir = root / "segments", root / "run"
    segments.mkdir(parents=True)
    run_dir.mkdir()
    made = manifest(str(run_dir), run_plan, **given)
    made.write(segments)
    geometry = Geometry(1 << 14, 1 << 15, 256, 16, len(run_plan.phases), len(run_plan.targets))
    writer = SegmentWriter.create(segments / "worker-0.1.ring", geometry, worker=0, incarnation=1)
    now = [START]
    collector = collector_of(segments)
    collector.clock = lambda: now[0]
    waiting = sorted(rows, key=lambda row: row["end_ns"])
    tick_ns, tick, next_row = run_plan.output.tick_ns, 0, 0
    while next_row < len(waiting):
        end_ns = START + (tick + 1) * tick_ns
        while next_row < len(waiting) and waiting[next_row]["end_ns"] < end_ns:
            assert writer.push(values(waiting[next_row]), None)
            next_row += 1
        now[0] = end_ns + GRACE_NS
        assert collector.turn() is None
        if tick in rebased_after:
            collector.checkpoint.rebase_next()
        if tick in killed_after:
            del collector  # as the kernel does for a killed process: descriptors are closed, nothing is written
            gc.collect()
            collector = collector_of(segments)
            collector.clock = lambda: now[0]
        tick += 1
    writer.close()
    for times in made.phases:
        times.end_ns = times.end_ns or START + tick * tick_ns
    made.state = "finished"
    made.write(segments)
    now[0] = START + tick * tick_ns + GRACE_NS
    for _ in range(20):
        if (report := collector.turn()) is not None:
            lines = (run_dir / "intervals.jsonl").read_bytes().splitlines()
            return report, [SNAPSHOT_DECODER.decode(line) for line in lines]
    raise AssertionError("the collector does not come to an end")
