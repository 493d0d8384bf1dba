"""The import order as data: between the top-level folders, and inside `engine`. No module imports itself in a circle.

Also the sizes: of a file, of a class, and of the top of `engine`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A folder imports itself and what stands before it. Names on one line are peers: they do not import each other.
FOLDERS = [["engine"], ["collectors"], ["exporters"], ["cli"]]
ENGINE = [
    ["errors", "clock"],
    ["files", "frames", "process", "metrics", "installed"],
    ["records", "plan"],
    ["dialects"],
    ["workload"],
    ["load", "wire"],
    ["planfile", "runs"],
    ["worker", "hosts"],
]
SIMULATOR_MAY_IMPORT = {"simulator", "errors", "clock", "process"}

LINES_MAX = 450  # of a file
METHODS_MAX = 30  # of a class
ATTRIBUTES_MAX = 25  # that a class sets on itself; a declared row or document has as many fields as its format
ENGINE_FILES_MAX = 8
MANY_ATTRIBUTES = {"Exchange"}  # the marks of one request, flat because the hot path writes them


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below the package, e.g. `engine.wire.pool`."""
    found = {}
    for (folder,) in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that `module` imports, wherever in the file: in functions and under TYPE_CHECKING too."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("llm_latency_lens") for alias in node.names), (
                f"{path}: absolute import"
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                found.add(full if full in MODULES else base)
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("llm_latency_lens"), f"{path}: absolute import"
    return frozenset(found)


def allowed(order: list[list[str]], name: str) -> set[str]:
    """What `name` may import: itself and every group before its own."""
    rank = next(i for i, group in enumerate(order) if name in group)
    return {name, *(each for group in order[:rank] for each in group)}


@pytest.mark.parametrize("folder", [folder for (folder,) in FOLDERS])
def test_a_folder_imports_only_itself_and_the_folders_below(folder: str) -> None:
    """cli > exporters > collectors > engine: a lower folder can be understood without a higher one."""
    for module in MODULES:
        if module.split(".")[0] == folder:
            for name in imports(module):
                assert name.split(".")[0] in {*allowed(FOLDERS, folder), ""}, f"{module} imports {name}"


@pytest.mark.parametrize("room", [room for group in ENGINE for room in group])
def test_inside_engine_no_folder_imports_a_later_one(room: str) -> None:
    """The order inside engine, as DESIGN draws it: ground, records and plan, dialects, workload, load and wire, ..."""
    for module in MODULES:
        parts = module.split(".")
        if parts[0] == "engine" and parts[1:2] == [room]:
            for name in imports(module):
                target = name.split(".")
                assert target[:1] == ["engine"]
                if len(target) > 1:
                    assert target[1] in allowed(ENGINE, room), f"{module} imports {name}"


def test_every_part_of_engine_has_its_rank() -> None:
    """A new folder in engine must be given a place in the order before anything can import it."""
    known = {room for group in ENGINE for room in group} | {"simulator"}
    assert {module.split(".")[1] for module in MODULES if module.startswith("engine.")} <= known


def test_the_simulator_stands_apart() -> None:
    """It is the truth that the client is measured against: sharing the client's code would share its errors."""
    for module in MODULES:
        if module.startswith("engine.simulator"):
            for name in imports(module):
                assert name == "engine" or name.split(".")[1] in SIMULATOR_MAY_IMPORT, f"{module} imports {name}"
        elif module.startswith("engine"):
            assert not any(name.startswith("engine.simulator") for name in imports(module)), module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_longer_than_can_be_read_in_one_sitting(module: str) -> None:
    """A file is one noun or one verb; past this length it has become two."""
    lines = MODULES[module].read_text().count("\n")
    assert lines <= LINES_MAX, f"{MODULES[module]}: {lines} lines; move a cohesive part out"


def test_no_class_has_more_methods_or_attributes_than_can_be_kept_in_mind() -> None:
    """A change to a class can touch all its state: what is too much to keep in mind is several classes."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= METHODS_MAX, f"{module}.{node.name} has {len(methods)} methods"
                if node.name not in MANY_ATTRIBUTES:
                    attributes = set_on_self(node)
                    assert len(attributes) <= ATTRIBUTES_MAX, f"{module}.{node.name} sets {len(attributes)} attributes"


def set_on_self(node: ast.ClassDef) -> set[str]:
    """The attributes that a class sets on itself, in any of its methods."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }


def test_the_top_of_engine_holds_only_what_every_folder_of_it_needs() -> None:
    """42 files lay flat there once, and nobody could say which of them belonged together."""
    assert len(list((ROOT / "engine").glob("*.py"))) <= ENGINE_FILES_MAX


def cycles() -> list[list[str]]:
    """Groups of modules that import one another, directly or through others (Tarjan, SIAM J. Comput. 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for name in imports(module):
            if name not in index and name in MODULES:
                visit(name)
            if name in stack:
                low[module] = min(low[module], low[name])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(MODULES):
        if module not in index:
            visit(module)
    return found


def test_no_modules_import_one_another() -> None:
    """A circle, also one hidden behind TYPE_CHECKING, makes several files one."""
    assert cycles() == []


def test_collectors_know_of_the_engine_only_layouts_rings_and_plans() -> None:
    """Collectors read what the engine left, they never make load."""
    for module in MODULES:
        if module.startswith("collectors"):
            for name in imports(module):
                for maker in ("worker", "runs.supervisor", "wire", "simulator"):
                    assert not name.startswith(f"engine.{maker}"), f"{module} imports {name}"


def test_a_worker_loads_nothing_heavy() -> None:
    """numpy, aiohttp, rich and click cost memory and start-up time that a worker does not have."""
    code = "import llm_latency_lens.engine.worker.process, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "aiohttp", "rich", "click", "psutil", "yaml", "hdrh", "genai_prices", "influxdb_client"}
    assert not heavy & set(loaded)


def test_the_help_loads_no_command() -> None:
    """`lens --help` has to stay instant: what a command needs is imported when it is used."""
    code = "import llm_latency_lens.cli.main, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "aiohttp", "rich", "psutil", "yaml", "hdrh", "uvloop", "msgspec"} & set(loaded)


def test_every_folder_of_the_package_is_in_the_wheel() -> None:
    """An editable install finds a folder that pyproject.toml does not list, and a wheel leaves it out."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert listed == {"llm_latency_lens", *(f"llm_latency_lens.{folder}" for folder in folders)}
