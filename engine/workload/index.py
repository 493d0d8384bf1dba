"""The records of a file by number: lines, CSV tables and JSON arrays of any size, in any order, in constant memory.

A splitter (`Lines`, `Table`, `Array`) finds where records begin and reads the one at an offset. A `Dataset` keeps these
offsets, 8 bytes a record, so every order is exact for every format and size:

- sequential: slot i gets record i modulo the number of records. The index grows while the file is read, so the first
  record of a 1 GB file leaves after one block;
- shuffle: every pass takes every record once, in its own order;
- random: drawn independently, with replacement;
- by weights: evenly spread if sequential, else drawn independently.

All but the first need the number of records, so the index is completed when the Dataset is made (about 1 s per GB of
JSONL, benches/bench_workload.py), before the run begins and not when the first request is due.

A record is *raw* (bytes of a line or object, cells of a table row) until it is used, so a worker pays only a split for
the records of the others. Nothing here knows what a record means.
"""

from __future__ import annotations

import csv
import json
import os
import weakref
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ..errors import PlanError
from .ask import slots
from .draw import M64, STEP_ROW, Permutation, Weighted, key_of, mix, unit

BLOCK_BYTES: Final = 1 << 16  # split in ~30 us: what one request pays at most for reading ahead
RECORD_BYTES: Final = 1 << 10  # read first to get one record by its offset; doubled until its end is found
RECORD_BYTES_MAX: Final = 32 << 20  # a longer "line" is not a file of records
_GZIP: Final = b"\x1f\x8b"

Raw = Any  # bytes | list[str], by the kind of file
Scan = Iterator[tuple[int, Raw]]  # offset, raw record


class Records(Protocol):
    """One kind of file. Passes may run side by side."""

    file: File

    def scan(self) -> Scan:
        """One pass in file order. Raises PlanError where the file is not of its kind."""

    def read(self, offset: int) -> Raw:
        """The record that begins at `offset`."""

    def columns(self, raw: Raw) -> dict[str, Any]:
        """The record's meaning by name. Raises ValueError saying what is wrong."""


class File:
    """An open file read by position, so that passes share it; closed with its last user."""

    def __init__(self, path: str, key: str, block_bytes: int = BLOCK_BYTES, record_bytes_max: int = RECORD_BYTES_MAX):
        self.path = path
        self.block_bytes = block_bytes
        self.record_bytes_max = record_bytes_max
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.fd)
            start = self.read(0, len(BOM_UTF8))
        except OSError as error:  # a folder opens, but does not read
            raise PlanError(f"cannot read {path}: {error.strerror} ({key})") from error
        self.size = os.fstat(self.fd).st_size
        if not start:
            raise PlanError(f"{path} is empty ({key})")
        if start.startswith(_GZIP):
            raise PlanError(f"{path} is gzip-compressed: unpack it first ({key})")
        self.begin = len(BOM_UTF8) if start == BOM_UTF8 else 0

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes; none at the end of the file."""
        return os.pread(self.fd, count, offset)

    def lines(self, offset: int, first_bytes: int) -> Iterator[bytes]:
        """The lines from `offset` on without their LF, read in blocks of which the first has `first_bytes`."""
        parts: list[bytes] = []  # joined once a line ends: a line of many blocks would otherwise be copied for each
        held, step = 0, first_bytes
        while block := self.read(offset, step):
            offset, step = offset + len(block), min(step * 2, self.block_bytes)
            lines = block.split(b"\n")
            parts.append(lines[0])
            held += len(lines[0])
            if held > self.record_bytes_max:
                where = self.where(offset - len(block))
                raise PlanError(f"{where} is longer than {self.record_bytes_max >> 20} MiB: one record a line?")
            if len(lines) > 1:
                lines[0] = b"".join(parts)
                parts = [lines.pop()]
                held = len(parts[0])
                yield from lines
        if held:
            yield b"".join(parts)

    def where(self, offset: int) -> str:
        """`prompts.jsonl line 12`. Counts the lines before `offset`: for errors only."""
        ends = sum(self.read(at, min(1 << 20, offset - at)).count(b"\n") for at in range(0, offset, 1 << 20))
        return f"{self.path} line {ends + 1}"


class Lines:
    """One record a line, ended by LF or CRLF; blank lines are none. `columns` returns a line's columns."""

    def __init__(self, file: File, columns: Callable[[bytes], dict[str, Any]]) -> None:
        self.file = file
        self.columns = columns

    def scan(self) -> Scan:
        offset = self.file.begin
        for line in self.file.lines(offset, self.file.block_bytes):
            if line and not line.isspace():
                yield offset, line
            offset += len(line) + 1

    def read(self, offset: int) -> bytes:
        block = self.file.read(offset, RECORD_BYTES)
        end = block.find(b"\n")
        return block[:end] if end >= 0 else next(self.file.lines(offset, RECORD_BYTES))


class Table:
    """A CSV or TSV file with a header; cells may hold quoted line ends."""

    def __init__(self, file: File, delimiter: str) -> None:
        self.file = file
        self._delimiter = delimiter
        csv.field_size_limit(file.record_bytes_max)  # prompts are longer than the module's 128 KiB
        header = next(self._rows(file.begin, file.block_bytes), (0, [""]))[1]
        self.header = [name.strip() for name in header]
        if "" in self.header or len(set(self.header)) < len(self.header):
            raise PlanError(f"{file.path} line 1 must name every column once, got {self.header}")

    def scan(self) -> Scan:
        rows = self._rows(self.file.begin, self.file.block_bytes)
        next(rows)
        return rows

    def read(self, offset: int) -> list[str]:
        return next(self._rows(offset, RECORD_BYTES))[1]

    def columns(self, raw: list[str]) -> dict[str, Any]:
        if len(raw) != len(self.header):
            raise ValueError(f"{len(raw)} cells, but the header names {len(self.header)} columns")
        return dict(zip(self.header, raw, strict=True))

    def _rows(self, begin: int, first_bytes: int) -> Iterator[tuple[int, list[str]]]:
        offset = begin

        def text() -> Iterator[str]:
            nonlocal offset  # the reader takes no line before it needs it: after a row, this is where the next begins
            for line in self.file.lines(begin, first_bytes):
                offset += len(line) + 1
                yield line.decode() + "\n"

        reader = csv.reader(text(), delimiter=self._delimiter, strict=True)
        while True:
            start = offset
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise PlanError(f"{self.file.where(min(offset, self.file.size) - 1)}: {error}") from error
            if row:
                yield start, row


class Array:
    """One JSON array of objects, cut into its objects as it is read."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.columns = json_object

    def scan(self) -> Scan:
        text = _Text(self.file, self.file.begin, self.file.block_bytes)
        text.expect("[")
        while text.peek() != "]":
            yield text.value()
            if text.peek() != ",":
                break
            text.expect(",")
            if text.peek() == "]":
                text.fail("expected an object")
        text.expect("]")
        if text.peek():
            text.fail("text after the array's end")

    def read(self, offset: int) -> bytes:
        return _Text(self.file, offset, RECORD_BYTES).value()[1]


class _Text:
    """Finds where JSON values end, with the C scanner of the json module, in a file that is read piece by piece.

    Bytes are taken as Latin-1: one character a byte, so positions are offsets, and no byte of a UTF-8 sequence is one
    that JSON's syntax uses. What is wrong with the UTF-8 shows when the record is decoded.
    """

    def __init__(self, file: File, offset: int, first_bytes: int) -> None:
        self._file = file
        self._offset = offset  # in the file, of the text's begin
        self._text = ""
        self._at = 0  # in the text
        self._scan = json.JSONDecoder().raw_decode
        self._more(first_bytes)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            rest = self._text[self._at : self._at + 64]
            stripped = rest.lstrip(" \t\r\n")
            self._at += len(rest) - len(stripped)
            if stripped:
                return stripped[0]
            if self._at >= len(self._text) and not self._more(self._file.block_bytes):
                return ""

    def expect(self, character: str) -> None:
        """Steps over `character`."""
        found = self.peek()
        if found != character:
            self.fail(f"expected '{character}', got {repr(found) if found else 'the end of the file'}")
        self._at += 1

    def value(self) -> tuple[int, bytes]:
        """(offset, text) of the object that begins here. Raises PlanError where it is no JSON."""
        if self.peek() != "{":
            self.fail("expected an object")
        step = self._file.block_bytes
        while True:
            try:
                _, end = self._scan(self._text, self._at)
            except ValueError as error:
                # Not complete yet, or never: only more of the file can decide which of the two.
                if len(self._text) - self._at > self._file.record_bytes_max or not self._more(step):
                    self.fail(f"not a complete JSON object ({error})")
                step *= 2
                continue
            found = self._offset + self._at, self._text[self._at : end].encode("latin-1")
            self._at = end
            return found

    def fail(self, what: str) -> None:
        """Raises PlanError with the line."""
        raise PlanError(f"{self._file.where(self._offset + self._at)}: {what}")

    def _more(self, count: int) -> bool:
        read = self._file.read(self._offset + len(self._text), count)
        self._text = self._text[self._at :] + read.decode("latin-1")
        self._offset, self._at = self._offset + self._at, 0
        return bool(read)


def json_object(raw: bytes) -> dict[str, Any]:
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


def open_records(
    path: str, key: str, *, block_bytes: int = BLOCK_BYTES, record_bytes_max: int = RECORD_BYTES_MAX
) -> Records:
    """The file's records by its suffix: .jsonl .ndjson .json (lines, or one array), .csv, .tsv; else by its first
    character, and if that is neither `{` nor `[`, one prompt a line. `key` names the path in the plan for errors.
    """
    file = File(path, key, block_bytes, record_bytes_max)
    suffix = Path(path).suffix.lower()
    start = file.read(file.begin, 4096).lstrip()[:1]
    if suffix in (".csv", ".tsv"):
        return Table(file, "," if suffix == ".csv" else "\t")
    if suffix != ".txt" and start == b"[":
        return Array(file)
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix != ".txt" and start == b"{"):
        return Lines(file, json_object)
    return Lines(file, text_line)


class Dataset:
    """Which record is for which slot, endless, and the same for any number of workers.

    `scan` are the records that count, in the order of their numbers: those of the file, unless given.
    """

    def __init__(self, records: Records, order: str, seed: int, scan: Scan | None = None) -> None:
        self._records = records
        self._order = order
        self._seed = seed
        self._scan = records.scan() if scan is None else scan
        self._offsets = array("Q")
        self._complete = False
        self._damage: PlanError | None = None
        self._weighted: Weighted | None = None
        if order != "sequential":
            self._size()

    def weigh(self, weights: Sequence[float]) -> None:
        """Draws from now on in proportion to `weights`, one a record."""
        self._weighted = Weighted(weights)

    def select(self, worker: int, workers: int, first: int, phase: int) -> Iterator[tuple[int, int, Raw]]:
        """(slot, offset, raw record) for the slots worker, worker + workers, ... that are >= first. Never ends.

        Raises PlanError where the file turns out to be damaged.
        """
        number, record = self._numbers(phase), self._record
        for slot in slots(worker, workers, first):
            yield slot, *record(number(slot))

    def _record(self, number: int) -> tuple[int, Raw]:
        if not self._complete and number >= len(self._offsets) and (found := self._grow(number)) is not None:
            return found  # it is at hand: one worker alone never reads a record twice in its first pass
        offset = self._offsets[number % self._size()]
        return offset, self._records.read(offset)

    def _size(self) -> int:
        """How many records there are; reads on to the end of the file."""
        if not self._complete:
            self._grow(M64)
        if not self._offsets:
            raise PlanError(f"{self._records.file.path} holds no records")
        return len(self._offsets)

    def _grow(self, number: int) -> tuple[int, Raw] | None:
        """Reads on up to record `number` and returns it; None if the file ends before."""
        if self._damage is not None:  # a generator that raised is at its end: it must not look like the file's
            raise self._damage
        try:
            for offset, raw in self._scan:
                self._offsets.append(offset)
                if len(self._offsets) > number:
                    return offset, raw
        except PlanError as error:
            self._damage = error
            raise
        self._complete = True
        return None

    def _numbers(self, phase: int) -> Callable[[int], int]:
        """From a slot to the number of its record."""
        weighted, key = self._weighted, key_of(self._seed, "rows", phase)
        if weighted is not None:
            if self._order == "sequential":
                return lambda slot: weighted.pick(unit(slot * STEP_ROW + key & M64))
            return lambda slot: weighted.pick(unit(mix(key ^ slot)))
        if self._order == "sequential":
            return lambda slot: slot
        size = self._size()
        if self._order == "random":
            return lambda slot: mix(key ^ slot) * size >> 64
        return _Shuffled(size, key)


class _Shuffled:
    """Every pass over the records in its own order. Slots must not go back to an earlier pass often: it is made anew."""

    __slots__ = ("_key", "_order", "_pass", "_size")

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._key = key
        self._pass = -1
        self._order = Permutation(size, key)

    def __call__(self, slot: int) -> int:
        number, i = divmod(slot, self._size)
        if number != self._pass:
            self._pass, self._order = number, Permutation(self._size, mix(self._key ^ number))
        return self._order(i)


def checked(records: Records, check: Callable[[int, Raw], Any], small_bytes: int, first: int) -> Iterable[Any]:
    """What `check(offset, raw)` returns for each record of a small file, of a larger one for the `first` ones."""
    for number, (offset, raw) in enumerate(records.scan()):
        if number >= first and records.file.size > small_bytes:
            return
        yield check(offset, raw)
