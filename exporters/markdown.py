"""The Markdown that every summary is made of. Pure; text from plans and servers cannot make markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

_MARKED: Final = re.compile(r"([\\`*_|<>\[\]#~])")


def plain(text: str) -> str:
    """The text as it stands, in one line."""
    return _MARKED.sub(r"\\\1", " ".join(text.split()))


def table(heads: Sequence[str], align: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; `align` are the cells of its second line, `---` or `---:`."""
    return [f"| {' | '.join(row)} |" for row in (heads, align, *rows)]
