"""The message of every wrong plan and flag in tests/data/wrong_plans.json, word for word.

After an intended change of a message: `python -m tests.test_plan_errors --write`, and read the diff.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from llm_latency_lens.cli.options import plan_from, run_options
from llm_latency_lens.engine.errors import PlanError

GOLDEN = Path(__file__).parent / "data" / "wrong_plans.json"
ROWS = json.loads(GOLDEN.read_text())


@contextlib.contextmanager
def folder_of_plan(text: str | None) -> Iterator[str | None]:
    """A working directory with the files that the rows name, and the plan; its name."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("some.txt").write_text("hello\n")
            Path("key.txt").write_text("sk-2\n")
            if text is not None:
                Path("plan.yaml").write_text(text)
            yield "plan.yaml" if text is not None else None
        finally:
            os.chdir(before)


def message_of(row: dict[str, Any]) -> str:
    """What PlanError says of the row's plan and flags."""

    @click.command()
    @run_options
    def command(**flags: Any) -> None:
        plan_from(flags.pop("plan_path"), flags, {"KEY": "sk-1"})

    with folder_of_plan(row["plan"]) as name:
        try:
            command.main([*([name] if name else []), *row["flags"]], standalone_mode=False)
        except PlanError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("row", ROWS, ids=[row["why"] for row in ROWS])
def test_a_wrong_plan_is_refused_with_its_message(row: dict[str, Any]) -> None:
    """Value, path, line, nearest key and way out: what a person needs to mend a plan must not get lost."""
    assert message_of(row) == row["message"] != ""


if __name__ == "__main__" and "--write" in sys.argv:
    rows = [row | {"message": message_of(row)} for row in ROWS]
    GOLDEN.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
