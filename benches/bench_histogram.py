"""What the collector pays: bulk recording against hdrh one by one, a batch of records, and a whole tick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.checkpoint import Checkpoint, Progress
from llm_latency_lens.collectors.histogram import DIGITS, HIGHEST, LOWEST, Histogram, indices
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.exporters.msgpack import rows
from tests.support_collector import MS, START, fields, manifest, plan, records

VALUES = 1_000_000
LATENCIES = np.random.default_rng(7).lognormal(np.log(20 * MS), 0.6, VALUES).astype(np.int64).clip(LOWEST, HIGHEST)


def test_indices_of_a_million_values(benchmark: Any) -> None:
    benchmark(indices, LATENCIES[: 1 << 15])


def test_bulk_record_of_a_million_values(benchmark: Any) -> None:
    histogram = Histogram()
    benchmark(histogram.record, LATENCIES)
    benchmark.extra_info["values_per_s"] = round(VALUES / benchmark.stats["mean"])


def test_hdrh_one_by_one_for_comparison(benchmark: Any) -> None:
    histogram = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    few = LATENCIES[:10_000].tolist()
    benchmark(lambda: [histogram.record_value(value) for value in few])
    benchmark.extra_info["values_per_s"] = round(len(few) / benchmark.stats["mean"])


def _batch(count: int, *, targets: int) -> Any:
    made = np.repeat(records(fields()), count)
    late = LATENCIES[:count].astype(np.uint64)
    made["first_token_ns"] = START + MS + late
    made["last_token_ns"], made["end_ns"] = made["first_token_ns"] + 5 * late, made["first_token_ns"] + 6 * late
    made["target"] = np.arange(count) % targets
    return made


@pytest.mark.parametrize("targets", [1, 5])
def test_books_of_a_second_of_10k_requests_and_40k_gaps(benchmark: Any, targets: int) -> None:
    """One drain is 25 ms of it: 250 records and 1000 gaps."""
    reader, part = Reader(targets), _batch(250, targets=targets)
    gaps = (LATENCIES[:1000] | ((np.arange(1000) % targets) << 42)).astype(np.uint64)

    def second() -> Slab:
        slab = Slab()
        for _ in range(40):
            reader.records(slab, reader.batch(part, worker=0, details={}))
            reader.gaps(slab, gaps)
        return slab

    benchmark(second)


def test_rows_of_500_requests(benchmark: Any, tmp_path: Path) -> None:
    made, run = Reader(1).batch(_batch(500, targets=1), worker=0, details={}), manifest(str(tmp_path), plan())
    encode = msgspec.msgpack.Encoder().encode
    benchmark(lambda: b"".join(map(encode, rows(made, run))))


@pytest.mark.parametrize("targets", [1, 5])
def test_report_and_checkpoint_of_a_tick(benchmark: Any, tmp_path: Path, targets: int) -> None:
    from llm_latency_lens.collectors.report import Losses, ReportBuilder, RunView
    from llm_latency_lens.collectors.snapshot import ENCODER, Client
    from llm_latency_lens.collectors.totals import Totals

    reader = Reader(targets)
    run = manifest(str(tmp_path), plan(targets=targets))
    totals, builder = Totals(reader, start_ns=START, tick_ns=10**9), ReportBuilder(run.plan)
    file = Checkpoint(tmp_path / "c")
    slab = Slab()
    reader.records(slab, reader.batch(_batch(10_000, targets=targets), worker=0, details={}))
    reader.gaps(slab, (LATENCIES[:40_000] | ((np.arange(40_000) % targets) << 42)).astype(np.uint64))

    def tick() -> None:
        totals.open[totals.next_tick] = slab
        closed = totals.close()
        client, view = Client(), RunView(run, totals, START + 10**9)
        report = builder.report(view, client_of=lambda _: client, errors={}, finished=False, losses=Losses())
        snapshot = builder.snapshot(view, 0, closed, state="running", client=client, in_flight={})
        ENCODER.encode(report), ENCODER.encode(snapshot)
        file.save(Progress(), closed=closed, totals=totals.run, opened={})

    benchmark(tick)
    file.close()
