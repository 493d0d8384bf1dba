"""Plan files as plain data with the line of every key: YAML, TOML and JSON, by the file's ending.

What comes out is what JSON can carry, of bounded size: a file that expands to gigabytes, is nested too deep or holds
numbers and dates that are none is a PlanError with its line, not a traceback.
"""

from __future__ import annotations

import json
import os
import tomllib
from math import isfinite
from pathlib import Path
from typing import Any, Final

import yaml

from ..errors import PlanError
from ..plan.address import looks_like_key
from ..plan.plan import MASK, WHOLE_MAX
from .document import Key, Source, dotted

FILE_BYTES_MAX: Final = 10_000_000
NODES_MAX: Final = 50_000  # as they stand in YAML, which is slow to read
VALUES_MAX: Final = 100_000  # aliases of YAML expanded
DEPTH_MAX: Final = 100


def read_document(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Source]:
    """A YAML, TOML or JSON file (by its ending) as plain data with its locations. Raises PlanError."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = MASK if looks_like_key(str(path)) else str(path) if str(path).isprintable() else repr(str(path))
        raise PlanError(f"cannot read the plan {shown}: {reason}") from error
    if len(content) > FILE_BYTES_MAX:
        raise PlanError(f"{path} is larger than {FILE_BYTES_MAX // 10**6} MB, which no plan is")
    lines: dict[Key, int] = {}
    try:
        if file.suffix == ".toml":
            value: Any = tomllib.loads(text)
        elif file.suffix == ".json":
            value = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, file.name))
        else:
            value = _yaml(text, file.name, lines)
    except json.JSONDecodeError as error:
        raise PlanError(f"{file.name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except (ValueError, OverflowError) as error:  # a number or date that is none; TOMLDecodeError
        kind = {".toml": "TOML", ".json": "JSON"}.get(file.suffix, "YAML")
        raise PlanError(f"{file.name} is not {kind}: {str(error).split(';')[0]}") from error
    except RecursionError as error:
        raise PlanError(f"{file.name} is not a plan: it is nested too deep") from error
    if not isinstance(value, dict):
        raise PlanError(f"{path} must be a mapping of plan keys (name, targets, phases, ...), not {_kind(value)}")
    source = Source(file.name, lines)
    check_values(value, source)
    return value, source


def check_values(document: Any, source: Source) -> None:
    """Raises PlanError for what plan.json and the request bodies could not hold, and for more than a plan can need."""
    left = VALUES_MAX
    pending: list[tuple[Any, Key]] = [(document, ())]
    while pending:
        value, path = pending.pop()
        left -= 1
        if left < 0 or len(path) > DEPTH_MAX:
            what = f"nested deeper than {DEPTH_MAX} levels" if left >= 0 else f"more than {VALUES_MAX:,} values"
            raise PlanError(f"the plan is too large: {what} ({source.location(path[:4])})")
        problem = _problem(value)
        if problem:
            raise PlanError(f"{dotted(path[-1:])} {problem} ({source.location(path)})")
        if isinstance(value, dict):
            pending += [(item, (*path, key)) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(item, (*path, i)) for i, item in enumerate(value)]


def _problem(value: Any) -> str:
    """What is wrong with one value; of a mapping, with its keys."""
    match value:
        case bool() | None:
            return ""
        case int():
            return "" if -WHOLE_MAX <= value <= WHOLE_MAX else f"must be <= {WHOLE_MAX:,}"
        case float():
            return "" if isfinite(value) else "must be a finite number"
        case str():
            return "" if _encodable(value) else "must be Unicode text, it holds bytes that are none"
        case list():
            return ""
        case dict():
            key = next((key for key in value if not isinstance(key, str) or not _encodable(key)), None)
            return "" if key is None else f"has the key {key!r}, which is no text"
    return f"must be text, a number, true or false, a list or a mapping, not a {type(value).__name__}; quote it"


def _encodable(text: str) -> bool:
    """False for surrogates, which arguments that are not UTF-8 become and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    """A JSON object; a key that stands twice is an error as it is in YAML and TOML."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise PlanError(f"the key {key!r} stands twice in one object ({name}); keep one of them")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader with the location of a number that is none. Dates are the text that they look like, as in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            mark = self.get_mark()
            raise PlanError(f"the plan is too large: more than {NODES_MAX:,} values (line {mark.line + 1})")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, TypeError) as error:
            problem = str(error).split(";")[0]
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _yaml(text: str, name: str, lines: dict[Key, int]) -> Any:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return {}
        if _expanded(root, {}) > VALUES_MAX:  # before anything follows the aliases: nine lines can mean gigabytes
            raise PlanError(f"{name} is too large: its aliases expand to more than {VALUES_MAX:,} values")
        _note_lines(root, (), lines, name)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise PlanError(f"{name} is not YAML: {error.problem}{location}") from error
    except yaml.YAMLError as error:
        raise PlanError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node is with its aliases followed; each node is counted once. Raises PlanError for a circle."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise PlanError(f"an alias stands inside itself (line {node.start_mark.line + 1})")
        return known[id(node)]
    known[id(node)] = -1
    count = 1
    if isinstance(node, yaml.MappingNode):
        count += sum(_expanded(key, known) + _expanded(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_expanded(item, known) for item in node.value)
    known[id(node)] = count
    return count


def _note_lines(node: yaml.Node, path: Key, lines: dict[Key, int], name: str) -> None:
    """The line of every key and element; a key that stands twice is an error, YAML would keep the last one silently."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            location = (*path, str(key.value))
            line = key.start_mark.line + 1
            if location in lines and key.value != "<<":
                raise PlanError(
                    f"{dotted(location)} stands twice ({name} lines {lines[location]} and {line}); keep one of them"
                )
            lines[location] = line
            _note_lines(value, location, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = value.start_mark.line + 1
            _note_lines(value, (*path, i), lines, name)


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)
