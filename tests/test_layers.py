"""The rooms' order: cli > exporters > collectors > engine. A room imports itself and what is below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "collectors", "exporters", "cli")
PACKAGE = "llm_latency_lens."


def imports(path: Path) -> list[str]:
    """Every module that the file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_itself_and_the_rooms_below(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            if name.startswith(PACKAGE):
                assert name.split(".")[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_collectors_know_of_the_engine_only_layouts_rings_and_plans() -> None:
    """Collectors read what the engine left, they never make load."""
    for path in (ROOT / "collectors").rglob("*.py"):
        for name in imports(path):
            for maker in ("worker", "supervisor", "connection", "pool", "simulator", "workload"):
                assert not name.startswith(f"{PACKAGE}engine.{maker}"), f"{path.name} imports {name}"


def test_a_worker_loads_nothing_heavy() -> None:
    """numpy, aiohttp, rich and click cost memory and start-up time that a worker does not have."""
    code = "import llm_latency_lens.engine.worker, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "aiohttp", "rich", "click", "psutil", "yaml", "hdrh", "genai_prices", "influxdb_client"}
    assert not heavy & set(loaded)


def test_the_help_loads_no_command() -> None:
    """`lens --help` has to stay instant: what a command needs is imported when it is used."""
    code = "import llm_latency_lens.cli.main, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "aiohttp", "rich", "psutil", "yaml", "hdrh", "uvloop", "msgspec"} & set(loaded)
