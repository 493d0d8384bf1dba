"""A plan document with locations: values that know their path and line, so that every error can say where and what else.

This module knows no key of a plan; `Node.read` knows how each declared type is written in a file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec

from ..errors import PlanError
from ..plan.address import looks_like_key
from ..plan.plan import DURATION_MAX_NS, MASK, SECOND, WHOLE_MAX, Secret
from ..plan.units import duration_ns, rate_per_s, size_bytes, written_duration

Key = tuple[str | int, ...]

_variable = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_MISSING: Final = object()


class Field(NamedTuple):
    """One declared key: the struct's attribute, the key in the file, its type without None, and what `about` says."""

    name: str
    key: str
    type: Any
    default: Any  # msgspec.NODEFAULT where the key is needed
    text: str
    unit: str
    low: float | None
    above: float | None
    high: float | None
    flag: str


@cache  # msgspec evaluates every annotation anew, which was nearly all the time that reading a plan took
def fields_of(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The declared keys of a struct, in order; attributes without `about(...)` have no key of their own."""
    found: list[Field] = []
    for info in msgspec.structs.fields(struct):
        meta = next((each for each in get_args(info.type)[1:] if isinstance(each, msgspec.Meta)), None)
        if get_origin(info.type) is Annotated and meta is not None and meta.extra is not None:
            found.append(
                Field(
                    info.name,
                    info.encode_name,
                    _without_none(get_args(info.type)[0]),
                    info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory(),
                    meta.description or "",
                    **meta.extra,
                )
            )
    return tuple(found)


def keys_of(struct: type[msgspec.Struct]) -> list[str]:
    return [field.key for field in fields_of(struct)]


def _without_none(kind: Any) -> Any:
    if isinstance(kind, UnionType):
        kinds = [each for each in get_args(kind) if each is not NoneType]
        return kinds[0] if len(kinds) == 1 else kind
    return kind


class Source:
    """Where a document came from: its name, the line of each key, and which keys a flag has set.

    Values under the keys of `hidden` are secrets, or what people write instead of them: no error shows them.
    """

    def __init__(self, name: str = "", lines: Mapping[Key, int] | None = None) -> None:
        self.name = name
        self.lines = dict(lines or {})
        self.flags: dict[Key, str] = {}
        self.hidden: frozenset[str | int] = frozenset()
        self.references: dict[str, str] = {}  # value from the environment -> the text with ${NAME} that stood for it

    def location(self, path: Key) -> str:
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
        location = self.source.location(self.path)
        return PlanError(f"{name} {problem}{given} ({location})" if location else f"{name} {problem}{given}")

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
                location = self.source.location((*self.path, key))
                raise PlanError(f"unknown key {key!r} ({location}); {hint}")
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
        filled = self._noted(self.value)
        if not empty and not filled:
            raise self.fail("must not be empty")
        return filled

    def fill(self, text: str) -> str:
        """`text` with ${NAME} and ${NAME:-default} replaced from the environment; unset or empty is an error.

        $${NAME} stands for ${NAME} itself.
        """

        if text == MASK and self.path[:1] != ("workload",):
            raise PlanError(
                f"{dotted(self.path)} is masked in this file ({self.source.location(self.path)}); "
                "write ${NAME} of an environment variable in its place, or give the flag for it"
            )

        def replace(match: re.Match[str]) -> str:
            escaped, name, default = match[1], match[2], match[3]
            if escaped:
                return match[0][1:]
            value = self.environ.get(name) or default
            if value is None:
                state = "empty" if name in self.environ else "not set"
                raise PlanError(
                    f"environment variable {name} is {state} ({self.source.location(self.path)}); "
                    f"set it, or write ${{{name}:-default}}, or $${{{name}}} for the text itself"
                )
            return value

        return _variable.sub(replace, text)

    def _noted(self, text: str) -> str:
        """`text` filled in; the source remembers what it was, so that the value is shown nowhere."""
        filled = self.fill(text)
        if filled and any(not match[1] for match in _variable.finditer(text)):
            self.source.references[filled] = text
        return filled

    def file(self) -> str:
        """A path to a file that exists; relative paths count from where the command runs."""
        path = self.user_path()
        if not path.is_file():
            raise self.fail("does not exist" if not path.exists() else "is no file")
        return str(path)

    def user_path(self) -> Path:
        """A path, with `~` as the user's home."""
        text = self.text(empty=False)
        if "\0" in text:
            raise self.fail("must not hold a NUL character")
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise self.fail("names a user that does not exist") from error

    def struct(self, kind: type[msgspec.Struct], skip: Iterable[str] = ()) -> dict[str, Any]:
        """The declared attributes of `kind` that are given here, read and checked; those of `skip` are left out."""
        left_out = set(skip)
        return {
            field.name: child.read(field)
            for field in fields_of(kind)
            if field.name not in left_out and (child := self.child(field.key)).given
        }

    def read(self, field: Field) -> Any:
        """This value as the declared field wants it."""
        low, above, high, kind = field.low, field.above, field.high, field.type
        match field.unit:
            case "duration":
                return self.duration(low=low, above=above, high=high)
            case "seconds":
                return self.duration(low=low, above=above, high=high) / SECOND
            case "size":
                return self.size()
            case "rate":
                return self.rate(low=low, above=above, high=high)
            case "file":
                return self.file()
            case "folder":
                return str(self.user_path())
            case "secret":
                return Secret(self.text())
            case "text":
                return self.text()
        if get_origin(kind) is Literal:
            return self.choice(get_args(kind))
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind(**self.mapping(keys_of(kind)).struct(kind))
        if get_origin(kind) is tuple:
            nodes = self.items() if isinstance(self.value, list) else [self]
            return tuple(node.text(empty=False) for node in nodes)
        readers: dict[Any, Callable[[], Any]] = {
            bool: self.flag,
            int: lambda: self.integer(low=low, high=int(high) if high is not None else WHOLE_MAX),
            float: lambda: self.number(low=low, high=high, above=above),
            str: lambda: self.text(empty=False),
        }
        return readers.get(kind, self.plain)()

    def plain(self) -> Any:
        """Any value, with the ${VARIABLES} of every string in it filled in."""
        if isinstance(self.value, str):
            return self._noted(self.value)
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
        if self.value is False and "off" in words:  # YAML 1.1 reads off as false
            word = "off"
        if word is None or word not in words:
            near = difflib.get_close_matches(str(word), words, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise self.fail(f"must be one of {', '.join(words)}{hint}")
        return word

    def integer(self, *, low: float | None = None, high: int = WHOLE_MAX) -> int:
        text = self.fill(self.value) if isinstance(self.value, str) else self.value
        try:
            value = int(text)  # not by way of float, which rounds above 2**53
        except (TypeError, ValueError, OverflowError):
            value = self._whole()
        else:
            if isinstance(text, bool) or (value != text and not isinstance(text, str)):
                raise self.fail("must be an integer")
        return int(self._within(value, low, high))

    def number(self, *, low: float | None = None, high: float | None = None, above: float | None = None) -> float:
        return self._within(self._number("a number"), low, high, above)

    def rate(self, *, low: float | None = None, above: float | None = None, high: float | None = None) -> float:
        """A rate per second."""
        return self._within(self._convert(rate_per_s), low, high, above)

    def duration(self, *, low: float | None = None, above: float | None = None, high: float | None = None) -> int:
        """A duration in ns; the bounds are ns, too, and shown with their unit."""
        value = self._convert(duration_ns)
        if above is not None and not value > above:
            raise self.fail(f"must be > {above:g}")
        if low is not None and value < low:
            raise self.fail(f"must be >= {written_duration(int(low))}")
        if value > (high if high is not None else DURATION_MAX_NS):
            raise self.fail("must be <= " + ("36500d" if high is None else written_duration(int(high))))
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
        value = self._number("an integer")
        if value != int(value):
            raise self.fail("must be an integer")
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


def _line(key: str) -> str:
    """A key as one line of an error."""
    return key if key.isprintable() else repr(key)


def _shown(value: Any) -> str:
    """A value in an error. Of mappings only the keys: they may hold secrets that no key of this error names."""
    if isinstance(value, dict):
        text = f"a mapping of {', '.join(_line(str(key)) for key in value)}" if value else "an empty mapping"
    elif isinstance(value, list):
        text = f"[{', '.join(_shown(item) for item in value[:10])}]"
    elif isinstance(value, str) and looks_like_key(value):
        text = MASK  # a key where a path, host or number was wanted
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
