"""What a plan, or a run of the default size, asks of the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

import msgspec
import psutil

from ...engine.load.models import model_of
from ...engine.plan.address import parse_url
from ...engine.plan.plan import Plan
from ...engine.runs.placement import (
    DESCRIPTORS_SPARE,
    TICK_ROWS,
    Rings,
    core_plan,
    in_flight_per_worker,
    physical_cores,
    rings_wanted,
    worker_count,
)

WORKER_BYTES: Final = 100_000_000  # resident, with 10,000 streams
OTHERS_BYTES: Final = 300_000_000  # supervisor, collector and exporter together
STREAMS_DEFAULT: Final = 10_000  # what a worker is made for; asked of the limits where there is no plan


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a run. `planned` False: there is no plan, these are the sizes of a default one.

    `addresses` are the numeric addresses of the targets or their proxies, empty where none is known.
    """

    planned: bool
    workers: int
    worker_cores: tuple[int, ...]  # unpinned workers: all cores that they may use
    usable_cores: tuple[int, ...]
    pinned: bool
    in_flight: int | None  # over all workers; None: only descriptors limit it
    descriptors_per_worker: int
    new_connections_per_s: float  # beside those that are reused
    destinations: int  # distinct address and port pairs
    rings: Rings
    addresses: tuple[str, ...] = ()

    @property
    def ring_bytes(self) -> int:
        return self.workers * self.rings.bytes

    @property
    def memory_bytes(self) -> int:
        return self.ring_bytes + self.workers * WORKER_BYTES + OTHERS_BYTES

    @property
    def loopback_only(self) -> bool:
        """All targets are known to be on this machine's loopback."""
        return bool(self.addresses) and all(ipaddress.ip_address(each).is_loopback for each in self.addresses)


def needs_of(plan: Plan | None, servers: Collection[tuple[str, int]] = ()) -> Needs:
    """What the plan needs; None: a run of the default size. `servers`: (numeric address, port) of its targets."""
    usable = tuple(sorted(psutil.Process().cpu_affinity() or [0]))
    if plan is None:
        workers = max(1, len(physical_cores(usable)) - 1)
        return Needs(
            planned=False,
            workers=workers,
            worker_cores=tuple(core_plan(workers).workers),
            usable_cores=usable,
            pinned=True,
            in_flight=None,
            descriptors_per_worker=STREAMS_DEFAULT + DESCRIPTORS_SPARE,
            new_connections_per_s=0.0,
            destinations=1,
            rings=Rings(requests=4096, gaps=1 << 20, ticks=TICK_ROWS),
        )
    workers = worker_count(plan)
    wanted = [model_of(phase.load).in_flight_max(phase.load) for phase in plan.phases]
    known = [each for each in wanted if each is not None]
    weight = sum(target.weight for target in plan.targets)
    fresh = sum(target.weight for target in plan.targets if target.fresh_connections) / weight if weight else 0.0
    peaks = [model_of(p.load).peak_per_s(p.load, workers) * workers for p in plan.phases if p.load.model == "open"]
    return Needs(
        planned=True,
        workers=workers,
        worker_cores=tuple(core_plan(workers).workers) if plan.workers.pin else usable,
        usable_cores=usable,
        pinned=plan.workers.pin,
        in_flight=max(known) if len(known) == len(wanted) and known else None,
        descriptors_per_worker=in_flight_per_worker(plan, workers) + DESCRIPTORS_SPARE,
        new_connections_per_s=fresh * max(peaks, default=0.0),
        destinations=max(1, min(len({*servers}), len({parse_url(each.base_url).authority for each in plan.targets}))),
        rings=rings_wanted(plan, workers),
        addresses=tuple(sorted({address for address, _ in servers})),
    )
