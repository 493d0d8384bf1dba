"""requests.parquet: one row per request, columns of requests.msgpack, zstd. The extra `llm-latency-lens[parquet]`."""

from __future__ import annotations

from pathlib import Path

from ..engine.errors import OutputError
from .arrow import arrow, request_batches


def write_requests(run_dir: Path, path: Path) -> int:
    """Writes the file in row groups of arrow.ROWS, constant memory; returns the number of requests."""
    arrow()
    from pyarrow import parquet

    count = 0
    schema, batches = request_batches(run_dir)
    try:
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                count += batch.num_rows
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    return count
