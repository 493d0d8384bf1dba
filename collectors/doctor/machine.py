"""Reads of /proc and /sys below a root that a test, or a copy from another machine, replaces. No exceptions: None."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


class Machine:
    """The files below `root`. `real` says that it is this machine, whose limits and devices may be asked as well."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.real = root == ROOT

    def text(self, path: str) -> str | None:
        """The stripped content; None if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The first word as an integer."""
        words = (self.text(path) or "").split()
        try:
            return int(words[0])
        except (ValueError, IndexError):
            return None

    def numbers(self, path: str) -> tuple[int, ...] | None:
        text = self.text(path)
        try:
            return None if text is None else tuple(int(word) for word in text.split())
        except ValueError:
            return None

    def cpus(self, path: str) -> frozenset[int] | None:
        """A list such as 0-3,8."""
        text = self.text(path)
        return None if text is None else cpu_list(text)

    def mask(self, path: str) -> frozenset[int] | None:
        """A mask such as 00000000,0000000f."""
        text = self.text(path)
        try:
            return None if text is None else cpu_mask(text)
        except ValueError:
            return None

    def listed(self, path: str, pattern: str = "*") -> list[Path]:
        """The entries of a directory that match, in order; empty if there is none."""
        try:
            return sorted((self.root / path).glob(pattern))
        except OSError:
            return []

    def has(self, path: str) -> bool:
        return (self.root / path).exists()


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list as the kernel writes it; what is no number ("(null)" of nohz_full) is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpu_mask(text: str) -> frozenset[int]:
    """The CPUs of a hexadecimal mask in groups of 32 bits. Raises ValueError."""
    bits = int(text.replace(",", "") or "0", 16)
    return frozenset(i for i in range(bits.bit_length()) if bits >> i & 1)


def fields_of(text: str | None) -> dict[str, int]:
    """Lines of "name value", as in cpu.stat and memory.stat."""
    found = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if value.strip().lstrip("-").isdigit():
            found[name] = int(value)
    return found
