"""A file of the run directory with something for every tick, in parts: what intervals.jsonl and intervals.hlog share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ...collectors.series import Batch, Slab
from ...collectors.snapshot import Report, Snapshot
from ...engine.runs.manifest import Manifest
from .parts import PartFile


class TickFile(ABC):
    """A sink of the collector. While the disk is full, up to 64 MB wait in memory."""

    def __init__(self, path: Path) -> None:
        self.file = PartFile(path)

    @abstractmethod
    def blocks(self, snapshot: Snapshot, slab: Slab, manifest: Manifest) -> Iterator[bytes]:
        """What the file gets for this tick."""

    @property
    def failures(self) -> int:
        return self.file.failures

    dropped = 0  # counts request rows, and these files have none

    def rows(self, batch: Batch, manifest: Manifest) -> None:  # noqa: B027  # no sink of ticks wants them
        """Nothing: requests are in requests.msgpack."""

    def tick(self, snapshot: Snapshot, report: Report, slab: Slab, manifest: Manifest) -> None:
        self.file.turn(snapshot.elapsed_s)
        for block in self.blocks(snapshot, slab, manifest):
            self.file.write(block)
        self.file.flush()

    def position(self) -> list[int]:
        return self.file.position()

    def rewind(self, position: list[int]) -> None:
        self.file.rewind(position)

    def close(self, report: Report) -> None:
        self.file.close()
