"""The rows of a run directory for programs: one by one, or as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...collectors.snapshot import Snapshot
from ...engine.installed import missing_extra
from ...exporters import rundir

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Requests:
    """A run's requests in the order of their end; each is a dict with the keys of requests.msgpack.

    Latencies are in ms, absent values None. Iterating reads the file anew, in constant memory. Raises OutputError for a
    run that was told to keep no records (`output.records: false`), PlanError where an extra is missing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return rundir.requests(self._run_dir)

    def to_arrow(self) -> pyarrow.Table:
        """A row per request. Needs the extra `parquet`."""
        from ...exporters.arrow import requests_table

        return requests_table(self._run_dir)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per request; absent numbers are NaN. Needs the extra `pandas`."""
        return _frame(self.to_arrow())


class Ticks:
    """A run's ticks, oldest first; each is a Snapshot: the numbers of every phase and target in one tick.

    Works on a run that still goes, up to its last tick. Iterating reads the file anew, in constant memory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def __iter__(self) -> Iterator[Snapshot]:
        return rundir.ticks(self._run_dir)

    def to_arrow(self) -> pyarrow.Table:
        """A row per tick, phase and target, columns of intervals.csv. Needs the extra `parquet`."""
        from ...exporters.arrow import ticks_table

        return ticks_table(self._run_dir)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per tick, phase and target; absent numbers are NaN. Needs the extra `pandas`."""
        return _frame(self.to_arrow())


def _frame(table: pyarrow.Table) -> pandas.DataFrame:
    try:
        import pandas  # noqa: F401  # pyarrow's own error names no way out
    except ImportError:
        raise missing_extra("pandas", "to_pandas()") from None
    frame: pandas.DataFrame = table.to_pandas()
    return frame
