"""What people read is plain technical English: no word of a private dialect in messages, logs, console, files, documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["engine", "collectors", "exporters", "cli"]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "REFERENCE.md"]
PROMPT_WORDS = "words"  # the module of English words that synthetic prompts are made of

# Each of these once stood for something that has a name of its own; the right column is what to write.
SAY_INSTEAD = {
    "told": "recorded, reported",
    "tells": "reports",
    "telling": "reporting",
    "teller": "ReportBuilder",
    "books": "totals",
    "lives": "incarnations, runs",
    "whole": "complete",
    "gives": "returns",
    "stretch": "segment, run",
    "stretches": "segments, runs",
    "strikes": "faults",
    "dealt": "distributed",
    "deck": "shuffled rows",
    "hush": "cancel_think_timers",
    "reins": "StopPipe",
    "bark": "restart the service",
}
WORDS = re.compile(rf"(?<![\w.])({'|'.join(SAY_INSTEAD)})(?!\w)", re.IGNORECASE)


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string literal of a source file that is no docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def found(text: str) -> str:
    """The first word of the list in `text` and what to write instead; empty if there is none."""
    match = WORDS.search(text.replace("_", " "))
    return f"{match[0]!r}: write {SAY_INSTEAD[match[0].lower()]!r}" if match else ""


@pytest.mark.parametrize("folder", SOURCES)
def test_no_message_of_the_program_uses_a_word_of_its_own(folder: str) -> None:
    """A log line or an error is read at night by somebody who has never seen the source."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.stem != PROMPT_WORDS:
            for line, text in literals(path):
                assert not found(text), f"{path.relative_to(ROOT)}:{line} {found(text)}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_document_uses_one(name: str) -> None:
    """The documents are where a reader learns the words: what they do not use, nobody has to guess."""
    for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1):
        assert not found(line), f"{name}:{number} {found(line)}"
