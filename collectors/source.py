"""Where a collector's ticks come from: the rings of this machine's workers, or the collectors of other hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ..engine.runs.manifest import Manifest
from .checkpoint import Progress
from .health import Moment
from .series import Slab
from .snapshot import HostReport, Reason


class HostFacts(NamedTuple):
    """What the verdict says of load hosts, in words; empty where there is nothing to say."""

    lost: str = ""  # which, why, and the ticks affected
    disagree: str = ""  # which measure something else than the others
    unclear: str = ""  # whose tick edges are not known well enough


class Source(Protocol):
    """Puts what has come into the totals, tick by tick. Keeps nothing that `save` and its own files do not keep."""

    problems: list[str]  # of extras that failed

    @property
    def errors(self) -> Mapping[tuple[int, int], tuple[str, int | None]]:
        """By (target, outcome) the latest message and HTTP status."""

    def read(self, manifest: Manifest, now: int) -> None:
        """Takes in what has come. The manifest was read before."""

    @property
    def done(self) -> bool:
        """Nothing more comes, once the manifest says that the run is finished."""

    def closing(self, now: int) -> int:
        """How many ticks can be closed, from the next one on."""

    def look(self, end: int) -> None:
        """Called before the ticks below `end` are closed."""

    def close(self, tick: int, issuing: Sequence[int] | None) -> Slab:
        """Closes the next tick of the totals. `issuing` are the phases that issue requests at its end; None at the end
        of the run."""

    def newest(self, now: int) -> int:
        """The newest tick of which there is something, -1 without any."""

    def fold(self, last: int) -> None:
        """There will be no tick after `last`."""

    def moment(self, now: int, write_wait_ns: int) -> Moment:
        """The cumulated readings of the measuring side. `write_wait_ns` is how long the collector has waited for disks."""

    @property
    def restarts(self) -> tuple[int, int, int]:
        """Of workers, collectors and exporter."""

    @property
    def outages(self) -> Sequence[tuple[int, int]]:
        """When workers were dead, this machine's CLOCK_MONOTONIC ns."""

    def arrivals(self) -> list[Reason]:
        """Phases that were not sent as the plan says, where that can be known."""

    def hosts(self, now: int, *, finished: bool) -> list[HostReport]:
        """The load hosts, in their order; none for a run of this machine alone."""

    def host_facts(self) -> HostFacts:
        """For the verdict."""

    def save(self, state: Progress) -> None:
        """Puts into the checkpoint's state where this source stands."""

    def release(self) -> None:
        """After the checkpoint: what it holds need not be kept any more."""
