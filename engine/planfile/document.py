"""A plan document with places: values that know their path and line, so that every error can say where and what else.

YAML (with line numbers), TOML and JSON. Sans plan: this module knows no key of a plan.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final

from ..errors import PlanError
from ..plan.units import duration_ns, rate_per_s, size_bytes

Key = tuple[str | int, ...]

_variable = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_MISSING: Final = object()
WHOLE_MAX: Final = (1 << 63) - 1  # what msgpack and the records can carry
DURATION_MAX_NS: Final = 36_500 * 86_400 * 10**9  # a hundred years


class Source:
    """Where a document came from: its name, the line of each key, and which keys a flag has set.

    Values under the keys of `hidden` are secrets, or what people write in their place: no error shows them.
    """

    def __init__(self, name: str = "", lines: Mapping[Key, int] | None = None) -> None:
        self.name = name
        self.lines = dict(lines or {})
        self.flags: dict[Key, str] = {}
        self.hidden: frozenset[str | int] = frozenset()

    def place(self, path: Key) -> str:
        """Where `path` is, for people: the flag that set it, or the path in the file with its line."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.flags:
                return self.flags[path[:depth]]
        shown = dotted(path)
        if not self.name:
            return shown
        line = next((self.lines[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in self.lines), None)
        return f"{shown}, {self.name} line {line}" if line else f"{shown}, {self.name}"


def dotted(path: Key) -> str:
    """`phases[1].load.rate`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_line(part)}" if text else _line(part)
    return text


class Node:
    """One value of the document, with its path. The readers check and convert; they raise PlanError, one line."""

    def __init__(self, value: Any, path: Key, source: Source, environ: Mapping[str, str]) -> None:
        self.value = value
        self.path = path
        self.source = source
        self.environ = environ

    def fail(self, problem: str) -> PlanError:
        """An error about this value: the key, what must be, what was given, and where."""
        name = next((part for part in reversed(self.path) if isinstance(part, str)), "the plan")
        secret = not self.source.hidden.isdisjoint(self.path)
        given = "" if self.value is _MISSING or secret else f", got {_shown(self.value)}"
        place = self.source.place(self.path)
        return PlanError(f"{name} {problem}{given} ({place})" if place else f"{name} {problem}{given}")

    def child(self, key: str | int) -> Node:
        value = self.value[key] if isinstance(key, int) else self.value.get(key, _MISSING)
        return Node(value, (*self.path, key), self.source, self.environ)

    @property
    def given(self) -> bool:
        return self.value is not _MISSING and self.value is not None

    def mapping(self, keys: Iterable[str] | None, what: str = "a mapping") -> Node:
        """This node, if it is a mapping of known keys; an unknown one is named with its nearest."""
        if not isinstance(self.value, dict):
            raise self.fail(f"must be {what}")
        known = list(keys) if keys is not None else None
        for key in self.value:
            if not isinstance(key, str):
                raise self.fail(f"has the key {key!r}, which is no text")
            if known is not None and key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
                place = self.source.place((*self.path, key))
                raise PlanError(f"unknown key {key!r} ({place}); {hint}")
        return self

    def items(self) -> list[Node]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.fail("must be a list")
        return [self.child(i) for i in range(len(self.value))]

    def entries(self) -> dict[str, Node]:
        """The members of a mapping with any keys."""
        self.mapping(None)
        return {key: self.child(key) for key in self.value}

    def text(self, *, empty: bool = True) -> str:
        """A string with its ${VARIABLES} filled in."""
        if not isinstance(self.value, str):
            raise self.fail("must be text")
        filled = self.fill(self.value)
        if not empty and not filled:
            raise self.fail("must not be empty")
        return filled

    def fill(self, text: str) -> str:
        """`text` with ${NAME} and ${NAME:-default} replaced from the environment; unset or empty is an error.

        $${NAME} stands for ${NAME} itself.
        """

        def replace(match: re.Match[str]) -> str:
            escaped, name, default = match[1], match[2], match[3]
            if escaped:
                return match[0][1:]
            value = self.environ.get(name) or default
            if value is None:
                state = "empty" if name in self.environ else "not set"
                raise PlanError(
                    f"environment variable {name} is {state} ({self.source.place(self.path)}); "
                    f"set it, or write ${{{name}:-default}}, or $${{{name}}} for the text itself"
                )
            return value

        return _variable.sub(replace, text)

    def plain(self) -> Any:
        """Any value, with the ${VARIABLES} of every string in it filled in."""
        if isinstance(self.value, str):
            return self.fill(self.value)
        if isinstance(self.value, dict):
            return {key: self.child(key).plain() for key in self.value}
        if isinstance(self.value, list):
            return [self.child(i).plain() for i in range(len(self.value))]
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail("must be true or false")
        return self.value

    def choice(self, options: Iterable[str]) -> str:
        """One of some words."""
        words = list(options)
        word = self.fill(self.value) if isinstance(self.value, str) else None
        if word is None or word not in words:
            near = difflib.get_close_matches(str(word), words, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise self.fail(f"must be one of {', '.join(words)}{hint}")
        return word

    def integer(self, *, low: int | None = None, high: int = WHOLE_MAX) -> int:
        text = self.fill(self.value) if isinstance(self.value, str) else self.value
        try:
            value = int(text)  # not by way of float, which rounds above 2**53
        except (TypeError, ValueError, OverflowError):
            value = self._whole()
        else:
            if isinstance(text, bool) or (value != text and not isinstance(text, str)):
                raise self.fail("must be a whole number")
        return int(self._within(value, low, high))

    def number(self, *, low: float | None = None, high: float | None = None, above: float | None = None) -> float:
        return self._within(self._number("a number"), low, high, above)

    def rate(self, *, low: float | None = None, above: float | None = 0) -> float:
        """A rate per second."""
        return self._within(self._convert(rate_per_s), low, None, above)

    def per_minute(self) -> float:
        """A rate per minute, > 0, as it stands."""
        return self.number(above=0)

    def duration(self, *, above: int | None = 0, low: int | None = None) -> int:
        """A duration in ns."""
        value = self._within(self._convert(duration_ns), low, None, above)
        if value > DURATION_MAX_NS:
            raise self.fail("must be <= 36500d")
        return int(value)

    def size(self) -> int:
        """A size in bytes, > 0."""
        return int(self._within(self._convert(size_bytes), None, WHOLE_MAX, 0))

    def _convert(self, convert: Callable[[Any], Any]) -> Any:
        value = self.fill(self.value) if isinstance(self.value, str) else self.value
        if not isinstance(value, str | int | float):
            raise self.fail("must be a number with a unit")
        try:
            return convert(value)
        except (ValueError, OverflowError) as error:
            raise self.fail(f"is not understood: {error}") from error

    def _whole(self) -> int:
        value = self._number("a whole number")
        if value != int(value):
            raise self.fail("must be a whole number")
        return int(value)

    def _number(self, what: str) -> float:
        value = self.fill(self.value) if isinstance(self.value, str) else self.value
        if isinstance(value, bool):
            raise self.fail(f"must be {what}")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.fail(f"must be {what}") from error
        if not isfinite(number):
            raise self.fail(f"must be {what}")
        return number

    def _within(self, value: float, low: float | None, high: float | None, above: float | None = None) -> float:
        if isinstance(value, float) and not isfinite(value):
            raise self.fail("must be a finite number")
        if above is not None and not value > above:
            raise self.fail(f"must be > {above:g}")
        if low is not None and value < low:
            raise self.fail(f"must be >= {low:g}")
        if high is not None and value > high:
            raise self.fail(f"must be <= {high:,}" if isinstance(high, int) else f"must be <= {high:g}")
        return value


def read_document(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Source]:
    """A YAML, TOML or JSON file (by its ending) as plain data with its places. Raises PlanError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
    no_lines: dict[Key, int] = {}
    if file.suffix == ".toml":
        value, lines = _toml(text, file.name), no_lines
    elif file.suffix == ".json":
        value, lines = _json(text, file.name), no_lines
    else:
        value, lines = _yaml(text, file.name)
    if not isinstance(value, dict):
        raise PlanError(f"{path} must be a mapping of plan keys (name, targets, phases, ...), not {_kind(value)}")
    return value, Source(file.name, lines)


def _toml(text: str, name: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{name} is not TOML: {error}") from error


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, name))
    except json.JSONDecodeError as error:
        raise PlanError(f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise PlanError(f"{name} is not a plan: its JSON is nested too deep") from error


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    """A JSON object; a key that stands twice is an error as it is in YAML and TOML."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise PlanError(f"the key {key!r} stands twice in one object ({name}); keep one of them")
        found[key] = value
    return found


def _yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            return {}, {}
        lines: dict[Key, int] = {}
        _note_lines(root, (), lines, name)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise PlanError(f"{name} is not YAML: {error.problem}{place}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PlanError(f"{name} is not YAML: {error}") from error


def _note_lines(node: Any, path: Key, lines: dict[Key, int], name: str) -> None:
    """The line of every key and element; a key that stands twice is an error, YAML would keep the last one silently."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, str(key.value))
            line = key.start_mark.line + 1
            if place in lines and key.value != "<<":
                raise PlanError(
                    f"{dotted(place)} stands twice ({name} lines {lines[place]} and {line}); keep one of them"
                )
            lines[place] = line
            _note_lines(value, place, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = value.start_mark.line + 1
            _note_lines(value, (*path, i), lines, name)


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)


def _line(key: str) -> str:
    """A key as one line of an error."""
    return key if key.isprintable() else repr(key)


def _shown(value: Any) -> str:
    """A value in an error. Of mappings only the keys: they may hold secrets that no key of this error names."""
    if isinstance(value, dict):
        text = f"a mapping of {', '.join(_line(str(key)) for key in value)}" if value else "an empty mapping"
    elif isinstance(value, list):
        text = f"[{', '.join(_shown(item) for item in value[:10])}]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
