"""requests.parquet: one row per request, columns of requests.msgpack, zstd. The extra `llm-latency-lens[parquet]`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..engine.errors import OutputError, PlanError
from . import rundir

ROWS: Final = 50_000
TEXTS: Final = frozenset({"phase", "target", "outcome", "unsent", "message", "request_id", "finish"})
LISTS: Final = frozenset({"token_ns", "token_coalesced"})
FLOATS: Final = ("_ms", "_tps", "_usd", "_s")


def write_requests(run_dir: Path, path: Path) -> int:
    """Writes the file in row groups of ROWS, constant memory; returns the number of requests."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise PlanError("parquet needs an extra: pip install 'llm-latency-lens[parquet]'") from None
    count = 0
    rows = rundir.requests(run_dir)
    first = next(rows, {})
    schema = pa.schema([(name, _type(pa, name, value)) for name, value in first.items()])
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in _batches(itertools.chain([first] if first else [], rows)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                count += len(batch)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    return count


def _type(pa: Any, name: str, value: Any) -> Any:
    """By name, since the first row's value may be absent."""
    if name in LISTS:
        return pa.list_(pa.bool_() if name == "token_coalesced" else pa.int64())
    if name in TEXTS or isinstance(value, str):
        return pa.string()
    if isinstance(value, bool):
        return pa.bool_()
    return pa.float64() if name.endswith(FLOATS) else pa.int64()


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, ROWS)):
        yield batch
