"""Ticks on their way between processes: one file a tick in a folder in tmpfs, named by its number.

One writer, one reader. The writer makes a tick visible with its final name (rename(2)), the reader removes what is safe
elsewhere. A SIGKILL of either at any moment loses no tick and shows no half of one; a tick may be read twice, and then
has the same number. A host's collector uses it towards the agent, the driver towards its collector.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from ..files import replace

FOLDER: Final = "ticks"  # of a host, in its segment directory
_STAGED: Final = ".staged"


def incoming(segment_dir: Path, index: int) -> Path:
    """Where the driver puts the ticks of host `index`."""
    return segment_dir / f"host-{index}"


class TickFolder:
    """`stage` and `commit`, or `put` alone, write; `numbers`, `read` and `remove` read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, number: int, content: bytes) -> None:
        """A tick that may be read at once. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        replace(self.folder / f"{number:012}", content)

    def stage(self, number: int, content: bytes) -> None:
        """A tick that may be read after commit(). Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        replace(self.folder / f"{number:012}{_STAGED}", content)

    def commit(self, end: int) -> None:
        """Makes the staged ticks below `end` readable; those from there on are thrown away: they will be written again."""
        for path in sorted(self.folder.glob(f"*{_STAGED}")):
            with suppress(OSError):
                path.rename(path.with_suffix("")) if int(path.stem) < end else path.unlink()

    def numbers(self) -> list[int]:
        """The ticks that can be read, ascending."""
        try:
            return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

    def read(self, number: int) -> bytes:
        """Raises FileNotFoundError for one that is not there, or not any more."""
        return (self.folder / f"{number:012}").read_bytes()

    def remove(self, end: int) -> None:
        """Removes the ticks below `end`."""
        for number in self.numbers():
            if number < end:
                (self.folder / f"{number:012}").unlink(missing_ok=True)
