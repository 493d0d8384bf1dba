"""Tables and lines that the live view and the final table share. Imports rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.markup import escape
from rich.table import Table

from ...collectors.snapshot import ErrorSample
from .terminal import printable

LEVELS: Final = ("p50", "p90", "p95", "p99")


def grid(first_head: str, *heads: str, first: int, width: int | None = None) -> Table:
    """A table without lines: a left column at least `first` wide, then right-aligned ones, `width` wide if given."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first_head, no_wrap=True, min_width=first, overflow="ellipsis")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", min_width=width, max_width=width)
    return table


def errors_table(errors: Iterable[ErrorSample], width: int) -> Table:
    """One line per outcome and target: how often, what, and the latest message."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red", no_wrap=True)
    table.add_column(style="red", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(20, width - 34))
    for error in errors:
        status = f"{error.http_status} " if error.http_status else ""
        message = " ".join(error.message.split())
        table.add_row(f"{error.count:,}", error.outcome, literal(f"{error.target}: {status}{message}"))
    return table


def literal(text: str) -> str:
    """Text from a plan or a server for where rich would read markup; it is shown unchanged."""
    return escape(printable(text))
