"""REFERENCE.md says what the code does: its tables are made from the declarations."""

from __future__ import annotations

import re

from tests.reference import PATH, TABLES, current


def test_the_tables_of_the_reference_are_current() -> None:
    """A key, flag or metric that the document does not know does not exist for those who read it.

    `python -m tests.reference --write` brings the document up to date.
    """
    text = PATH.read_text(encoding="utf-8")
    assert current(text) == text


def test_every_table_stands_in_the_reference_once() -> None:
    """A table whose markers were lost would never be checked again."""
    found = re.findall(r"<!-- begin (\w+) -->", PATH.read_text(encoding="utf-8"))
    assert sorted(found) == sorted(TABLES)
