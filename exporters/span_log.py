"""spans.jsonl: a line for each request that becomes a span, as a sink of the collector and the spool of exporters.otlp_spans.

Only where an export of the plan asks for spans. Lines are only added, as in intervals.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ..collectors.series import Batch, Slab
from ..collectors.snapshot import Report, Snapshot
from ..engine.records.record import UNKNOWN, Outcome
from ..engine.records.trace import trace_context
from ..engine.runs.manifest import Manifest
from ..engine.runs.rundir import SPANS
from .spool.ticks import TickFile

_MARKS: Final = ("headers", "first_token", "last_token")
_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
_METRICS: Final = ("ttft_ms", "rtt_ms", "server_ttft_ms", "provider_ms", "client_lateness_ms")


class SpanRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One sent request. Times are Unix epoch ns."""

    trace_id: str
    span_id: str
    run: str
    phase: str
    target: str
    start_ns: int
    end_ns: int
    outcome: str
    http_status: int = 0
    marks: dict[str, int] = {}  # those that were reached
    tokens: dict[str, int] = {}  # those that are known
    metrics: dict[str, float] = {}
    message: str = ""
    request_id: str = ""
    finish: str = ""


ENCODE: Final = msgspec.json.Encoder().encode
DECODE: Final = msgspec.json.Decoder(SpanRow).decode


def span_rows(batch: Batch, manifest: Manifest) -> list[SpanRow]:
    """The sampled requests of the batch that were sent."""
    records, plan = batch.records, manifest.plan
    offset = manifest.anchor_wall_ns - manifest.anchor_mono_ns
    share = plan.span_share
    found = []
    for i in np.flatnonzero((records["send_ns"] > 0) & (records["end_ns"] > 0)).tolist():
        record: Any = records[i]
        phase, request = int(record["phase"]), int(record["request"])
        context = trace_context(manifest.run_id, phase, request, share)
        if not context.sampled:
            continue
        detail = batch.details.get((phase, request))
        marks = {name: int(record[f"{name}_ns"]) + offset for name in _MARKS if record[f"{name}_ns"]}
        metrics: dict[str, float] = {
            name: float(batch.columns[name][1][i]) / 1e6
            for name in _METRICS
            if name in batch.columns and batch.columns[name][0][i]
        }
        found.append(
            SpanRow(
                trace_id=context.trace_id,
                span_id=context.span_id,
                run=manifest.run_id,
                phase=plan.phases[phase].name,
                target=plan.targets[min(int(record["target"]), len(plan.targets) - 1)].name,
                start_ns=int(record["send_ns"]) + offset,
                end_ns=int(record["end_ns"]) + offset,
                outcome=Outcome(int(record["outcome"])).name.lower(),
                http_status=int(record["http_status"]),
                marks=marks,
                tokens={name: int(record[name]) for name in _TOKENS if record[name] != UNKNOWN},
                metrics=metrics,
                message="" if detail is None else detail.message,
                request_id="" if detail is None else detail.request_id,
                finish="" if detail is None else detail.finish,
            )
        )
    return found


class SpanLog(TickFile):
    """The file."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / SPANS)

    def rows(self, batch: Batch, manifest: Manifest) -> None:
        self.file.write(b"".join(ENCODE(row) + b"\n" for row in span_rows(batch, manifest)))

    def blocks(self, snapshot: Snapshot, slab: Slab, manifest: Manifest) -> Iterator[bytes]:
        """Nothing: its lines come with the requests."""
        return iter(())

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        self.file.flush()  # before another part may begin
        super().tick(snapshot, report, slab, manifest)
