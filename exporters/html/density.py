"""How a time depends on a token count: counts in a fixed grid, so that any number of requests takes the same memory.

The grid is logarithmic on both axes. The picture has the filled part of it in few, coarser cells; p50, p90 and p99 of each
column are taken from the fine cells, which are 3.7 % high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

TOKENS_MAX: Final = 1e6
LOWEST_MS, HIGHEST_MS = 0.01, 1e7
COLUMNS_PER_DECADE: Final = 128
ROWS_PER_DECADE: Final = 64
COLUMNS: Final = round(np.log10(TOKENS_MAX) * COLUMNS_PER_DECADE) + 1
ROWS: Final = round(np.log10(HIGHEST_MS / LOWEST_MS) * ROWS_PER_DECADE)
SHOWN_COLUMNS: Final = 44
SHOWN_ROWS: Final = 36
FEWEST: Final = 20  # requests of a column that has quantiles
LEVELS: Final = (0.5, 0.9, 0.99)
BATCH: Final = 4096

Ints = npt.NDArray[np.int64]


class DensityChart(msgspec.Struct):
    """`cells`: (column, row, count) of the filled ones; `lines`: (middle of the column, p50, p90, p99)."""

    target: str
    title: str
    x_label: str
    y_label: str
    count: int
    columns: list[float]  # edges, tokens
    rows: list[float]  # edges, ms
    cells: list[tuple[int, int, int]]
    lines: list[tuple[float, float | None, float | None, float | None]]


class Density:
    """Counts of (tokens, ms)."""

    def __init__(self) -> None:
        self._counts = np.zeros((COLUMNS, ROWS), np.uint32)
        self._tokens: list[int] = []
        self._ms: list[float] = []

    def add(self, tokens: int, ms: float) -> None:
        self._tokens.append(tokens)
        self._ms.append(ms)
        if len(self._tokens) >= BATCH:
            self._settle()

    def _settle(self) -> None:
        tokens, ms = np.array(self._tokens, float), np.array(self._ms, float)
        columns = np.log10(tokens.clip(1, TOKENS_MAX)) * COLUMNS_PER_DECADE
        rows = np.log10(ms.clip(LOWEST_MS, HIGHEST_MS * 0.999) / LOWEST_MS) * ROWS_PER_DECADE
        np.add.at(self._counts, (columns.astype(int), rows.astype(int).clip(0, ROWS - 1)), 1)
        self._tokens.clear()
        self._ms.clear()

    def chart(self, *, target: str, title: str, x_label: str, y_label: str) -> DensityChart | None:
        """The picture; None where there is nothing to see: no request, or all of one length."""
        if self._tokens:
            self._settle()
        filled_x = np.flatnonzero(self._counts.any(axis=1))
        filled_y = np.flatnonzero(self._counts.any(axis=0))
        if len(filled_x) < 2:
            return None
        columns = _edges(int(filled_x[0]), int(filled_x[-1]) + 1, SHOWN_COLUMNS)
        rows = _edges(int(filled_y[0]), int(filled_y[-1]) + 1, SHOWN_ROWS)
        fine = np.add.reduceat(self._counts, columns[:-1], axis=0)[:, : rows[-1]]
        coarse = np.add.reduceat(fine, rows[:-1], axis=1)
        at = np.argwhere(coarse)
        x, y = _tokens_at(columns), _ms_at(rows)
        return DensityChart(
            target=target,
            title=title,
            x_label=x_label,
            y_label=y_label,
            count=int(coarse.sum()),
            columns=[float(f"{v:.4g}") for v in x],
            rows=[float(f"{v:.4g}") for v in y],
            cells=[(int(i), int(k), int(coarse[i, k])) for i, k in at],
            lines=[
                (float(f"{np.sqrt(x[i] * x[i + 1]):.4g}"), *_quantiles(column))
                for i, column in enumerate(fine)
                if column.sum() >= FEWEST
            ],
        )


def _edges(low: int, high: int, most: int) -> Ints:
    """The fine cells low..high in at most `most` groups of equal size: their first cells, and the end."""
    size = max(1, -(-(high - low) // most))
    groups = -(-(high - low) // size)
    return low + size * np.arange(groups + 1)


def _tokens_at(columns: Sequence[int] | Ints) -> npt.NDArray[np.float64]:
    return np.asarray(10 ** (np.asarray(columns) / COLUMNS_PER_DECADE))


def _ms_at(rows: Sequence[int] | Ints) -> npt.NDArray[np.float64]:
    return np.asarray(LOWEST_MS * 10 ** (np.asarray(rows) / ROWS_PER_DECADE))


def _quantiles(column: npt.NDArray[np.uint32]) -> tuple[float | None, float | None, float | None]:
    running = np.cumsum(column, dtype=np.int64)
    found = []
    for level in LEVELS:
        enough = level < 0.9 or running[-1] * (1 - level) >= 1
        k = int(np.searchsorted(running, max(1, np.ceil(level * running[-1]))))
        found.append(float(f"{_ms_at([k + 0.5])[0]:.4g}") if enough else None)  # type: ignore[list-item]
    return found[0], found[1], found[2]
