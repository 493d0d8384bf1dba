"""Files of records of any size in constant memory: lines, CSV tables and JSON arrays, as raw records with places.

A record is *raw* (bytes of a line, cells of a table row, text of an array's object) until it is used, so a worker pays
only a split for the rows of the others. A *place* is the number that `where` turns into words for an error. Nothing
here knows what a record means.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ..errors import PlanError
from .draw import Permutation

BLOCK_BYTES: Final = 1 << 16  # split in ~30 us: what one request pays at most for reading ahead
RECORD_BYTES_MAX: Final = 32 << 20  # a longer "line" is not a file of records
_BOM: Final = codecs.BOM_UTF8
_GZIP: Final = b"\x1f\x8b"

Raw = Any  # bytes | list[str] | str, by the kind of file


class Records(Protocol):
    """A file of records, opened once; passes may run side by side."""

    path: str
    size: int

    def ordered(self) -> Iterator[tuple[int, Raw]]:
        """One pass in file order: (place, raw)."""

    def scattered(self, key: int) -> Iterator[tuple[int, Raw]]:
        """One pass in another order, as well mixed as the format allows without reading all of it first."""

    def columns(self, raw: Raw) -> dict[str, Any]:
        """The record's meaning by name. Raises ValueError saying what is wrong."""

    def where(self, place: int) -> str:
        """The place in words: `prompts.jsonl line 12`. May read the file up to there."""


class File:
    """An open file read by position, so that passes share it; closed with its last user."""

    def __init__(self, path: str, key: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PlanError(f"cannot read {path}: {error.strerror} ({key})") from error
        weakref.finalize(self, os.close, self.fd)
        self.size = os.fstat(self.fd).st_size
        try:
            start = self.read(0, len(_BOM))
        except OSError as error:  # a folder opens, but does not read
            raise PlanError(f"cannot read {path}: {error.strerror} ({key})") from error
        if not start:
            raise PlanError(f"{path} is empty ({key})")
        if start.startswith(_GZIP):
            raise PlanError(f"{path} is gzip-compressed: unpack it first ({key})")
        self.begin = len(_BOM) if start == _BOM else 0

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def line(self, offset: int) -> int:
        """The number of the line that begins at `offset`. Counts from the start: for errors only."""
        ends = sum(self.read(at, min(1 << 20, offset - at)).count(b"\n") for at in range(0, offset, 1 << 20))
        return ends + 1


class Lines:
    """One record a line, ended by LF or CRLF; blank lines are none. `decode` gives a line's columns.

    A line belongs to the block that its first byte lies in, so any block can be read without those before it.
    """

    def __init__(self, file: File, decode: Any) -> None:
        self.path = file.path
        self.size = file.size
        self.columns = decode
        self._file = file
        self._blocks = -(-(file.size - file.begin) // BLOCK_BYTES)

    def ordered(self) -> Iterator[tuple[int, Raw]]:
        for block in range(self._blocks):
            yield from self._read(block)

    def scattered(self, key: int) -> Iterator[tuple[int, Raw]]:
        order = Permutation(self._blocks, key)
        for i in range(self._blocks):
            yield from self._read(order(i))

    def where(self, place: int) -> str:
        return f"{self.path} line {self._file.line(place)}"

    def _read(self, block: int) -> list[tuple[int, bytes]]:
        begin = self._file.begin + block * BLOCK_BYTES
        end = min(begin + BLOCK_BYTES, self.size)
        offset = begin - 1 if block else begin  # with the byte before: is the first one here the first of a line?
        lines = self._file.read(offset, end - offset).split(b"\n")
        if block:
            offset += len(lines.pop(0)) + 1
            if not lines:
                return []
        if lines[-1]:
            lines[-1] += self._rest_of_line(end, len(lines[-1]))
        found = []
        for line in lines:
            if line and not line.isspace():
                found.append((offset, line))
            offset += len(line) + 1
        return found

    def _rest_of_line(self, offset: int, so_far: int) -> bytes:
        parts: list[bytes] = []
        begin = offset - so_far
        step = min(BLOCK_BYTES, 4096)  # most lines end soon
        while part := self._file.read(offset, step):
            cut = part.find(b"\n")
            parts.append(part if cut < 0 else part[:cut])
            if cut >= 0:
                break
            offset, so_far, step = offset + len(part), so_far + len(part), min(step * 2, 1 << 22)
            if so_far > RECORD_BYTES_MAX:
                raise PlanError(f"{self.where(begin)} is longer than {RECORD_BYTES_MAX >> 20} MiB: one record a line?")
        return b"".join(parts)


class Table:
    """A CSV or TSV file with a header; cells may hold quoted line ends. The place is the number of the row's last line.

    Where a row begins cannot be told from the middle of the file, so `scattered` is in file order too.
    """

    def __init__(self, file: File, delimiter: str) -> None:
        self.path = file.path
        self.size = file.size
        self._file = file
        self._delimiter = delimiter
        csv.field_size_limit(RECORD_BYTES_MAX)  # prompts are longer than the module's 128 KiB
        first = next(self._rows(), None)
        self.header = [name.strip() for name in first[1]] if first else []
        if not first or "" in self.header or len(set(self.header)) < len(self.header):
            raise PlanError(f"{self.path} line 1 must name every column once, got {self.header}")

    def ordered(self) -> Iterator[tuple[int, Raw]]:
        rows = self._rows()
        next(rows)
        return rows

    def scattered(self, key: int) -> Iterator[tuple[int, Raw]]:
        return self.ordered()

    def columns(self, raw: Raw) -> dict[str, Any]:
        if len(raw) != len(self.header):
            raise ValueError(f"{len(raw)} cells, but the header names {len(self.header)} columns")
        return dict(zip(self.header, raw, strict=True))

    def where(self, place: int) -> str:
        return f"{self.path} line {place}"

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self._text(), delimiter=self._delimiter, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise PlanError(f"{self.path} line {reader.line_num}: {error}") from error
            if row:
                yield reader.line_num, row

    def _text(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        held = ""
        for offset in range(self._file.begin, self.size, BLOCK_BYTES):
            lines = (held + decoder.decode(self._file.read(offset, BLOCK_BYTES))).split("\n")
            held = lines.pop()
            if len(held) > RECORD_BYTES_MAX:
                raise PlanError(f"{self.path} has a line longer than {RECORD_BYTES_MAX >> 20} MiB")
            for line in lines:
                yield line + "\n"
        held += decoder.decode(b"", final=True)
        if held:
            yield held


class Array:
    """One JSON array of objects, cut into its objects as it is read. The place is the line an object begins on."""

    def __init__(self, file: File) -> None:
        self.path = file.path
        self.size = file.size
        self._file = file

    def ordered(self) -> Iterator[tuple[int, Raw]]:
        cutter = _Cutter(self._file)
        cutter.expect("[")
        if cutter.peek() == "]":
            return
        while True:
            yield cutter.line, cutter.value()
            if cutter.peek() != ",":
                break
            cutter.expect(",")
        cutter.expect("]")
        if cutter.peek():
            cutter.fail("text after the array's end")

    def scattered(self, key: int) -> Iterator[tuple[int, Raw]]:
        return self.ordered()

    def columns(self, raw: Raw) -> dict[str, Any]:
        return json_object(raw)

    def where(self, place: int) -> str:
        return f"{self.path} line {place}"


class _Cutter:
    """Finds where JSON values end, with the C scanner of the json module, in a text that is read piece by piece."""

    def __init__(self, file: File) -> None:
        self.line = 1
        self._file = file
        self._offset = file.begin
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            rest = self._text[self._at : self._at + 64]
            stripped = rest.lstrip(" \t\r\n")
            self._pass(len(rest) - len(stripped))
            if stripped:
                return stripped[0]
            if self._at >= len(self._text) and not self._more(BLOCK_BYTES):
                return ""

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            self.fail(f"expected '{character}', got {repr(found) if found else 'the end of the file'}")
        self._pass(1)
        self.peek()  # `line` is now the one that the next value begins on

    def value(self) -> str:
        """The text of the value that begins here. Raises PlanError where it is no JSON."""
        if self.peek() != "{":
            self.fail("expected an object")
        step = BLOCK_BYTES
        while True:
            try:
                _, end = self._scan(self._text, self._at)
            except ValueError as error:
                # Not whole yet, or never: which of the two only more of the file can tell.
                if len(self._text) - self._at > RECORD_BYTES_MAX or not self._more(step):
                    self.fail(f"not a whole JSON object ({error})")
                step *= 2
                continue
            value = self._text[self._at : end]
            self._pass(end - self._at)
            return value

    def fail(self, what: str) -> None:
        raise PlanError(f"{self._file.path} line {self.line}: {what}")

    def _pass(self, characters: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + characters)
        self._at += characters

    def _more(self, count: int) -> bool:
        read = self._file.read(self._offset, count)
        self._offset += len(read)
        try:
            text = self._decoder.decode(read, final=not read)
        except UnicodeDecodeError as error:
            raise PlanError(f"{self._file.path} near line {self.line}: {error}") from error
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(read)


def json_object(raw: bytes | str) -> dict[str, Any]:
    """The columns of a record that is a JSON object. Raises ValueError."""
    try:
        decoded = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(decoded, dict):
        raise ValueError("not a JSON object")
    return decoded


def text_line(raw: bytes) -> dict[str, Any]:
    """The columns of a line of text: all of it, as `prompt`. Raises ValueError."""
    return {"prompt": raw.rstrip(b"\r").decode()}


def open_records(path: str, key: str) -> Records:
    """The file's records by its suffix: .jsonl .ndjson .json (lines, or one array), .csv, .tsv; else by its first
    character, and if that is neither `{` nor `[`, one prompt a line. `key` names the path in the plan for errors.
    """
    file = File(path, key)
    suffix = Path(path).suffix.lower()
    start = file.read(file.begin, 4096).lstrip()[:1]
    if suffix in (".csv", ".tsv"):
        return Table(file, "," if suffix == ".csv" else "\t")
    if suffix != ".txt" and start == b"[":
        return Array(file)
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix != ".txt" and start == b"{"):
        return Lines(file, json_object)
    return Lines(file, text_line)
