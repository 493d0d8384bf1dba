"""A run's requests and ticks as Arrow tables: typed columns, for pandas, Polars, DuckDB and Parquet.

Columns of requests are the keys of requests.msgpack; of ticks, a row per tick, phase and target, those of intervals.csv.
Needs pyarrow, the extra `llm-latency-lens[parquet]`, which is loaded only here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..engine.installed import missing_extra
from . import rundir
from .csv import HEADER, interval_rows

if TYPE_CHECKING:
    import pyarrow

ROWS: Final = 50_000
LABELS: Final = frozenset({"phase", "target"})  # the texts of a tick, where `unsent` is a number
TEXTS: Final = LABELS | {"outcome", "unsent", "message", "request_id", "finish", "text"}
FLAGS: Final = frozenset({"measured"})
LISTS: Final = frozenset({"token_ns", "token_coalesced"})
FLOATS: Final = ("_ms", "_tps", "_usd", "_s", "_share", "seconds")
LEVELS: Final = ("_mean", "_stddev", "_min", "_max", "_p50", "_p90", "_p95", "_p99", "_p99_9")


def arrow() -> Any:
    """pyarrow. Raises PlanError, which names the extra, where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise missing_extra("parquet", "Parquet and Arrow") from None
    return pyarrow


def requests_table(run_dir: Path) -> pyarrow.Table:
    """All requests of a run that were recorded. Raises OutputError for a run without requests.msgpack."""
    pa = arrow()
    schema, batches = request_batches(run_dir)
    return pa.Table.from_batches(batches, schema=schema)


def request_batches(run_dir: Path) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    """The schema of a run's requests and their batches of at most ROWS, in constant memory."""
    pa = arrow()
    rows = rundir.requests(run_dir)
    first = next(rows, {})
    schema = pa.schema([(name, _type(pa, name, value)) for name, value in first.items()])
    return schema, (
        pa.RecordBatch.from_pylist(batch, schema=schema)
        for batch in _chunks(itertools.chain([first] if first else [], rows))
    )


def ticks_table(run_dir: Path) -> pyarrow.Table:
    """The ticks of a run, a row for each phase and target in each."""
    pa = arrow()
    schema = pa.schema([(name, _type(pa, name, None, LABELS)) for name in HEADER])
    batches = [
        pa.RecordBatch.from_pylist([dict(zip(HEADER, row, strict=True)) for row in chunk], schema=schema)
        for chunk in _chunks(interval_rows(rundir.ticks(run_dir)))
    ]
    return pa.Table.from_batches(batches, schema=schema)


def _type(pa: Any, name: str, value: Any, texts: Set[str] = TEXTS) -> Any:
    """By name, since the first row's value may be absent."""
    if name in LISTS:
        return pa.list_(pa.bool_() if name == "token_coalesced" else pa.int64())
    if name in texts or isinstance(value, str):
        return pa.string()
    if name in FLAGS or isinstance(value, bool):
        return pa.bool_()
    if name.endswith("_count"):
        return pa.int64()
    return pa.float64() if name.endswith((*FLOATS, *LEVELS)) else pa.int64()


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, ROWS)):
        yield chunk
