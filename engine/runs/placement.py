"""Where the processes of a run work and how large their rings are: cores, the number of workers, ring geometry."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import psutil

from ..errors import PlanError, SegmentError
from ..load.limits import most_workers
from ..load.models import model_of
from ..plan.plan import Plan
from ..records.layout import Geometry
from ..records.ticks import ROW_BYTES
from .manifest import SEGMENTS

DESCRIPTORS_SPARE: Final = 64
RING_SECONDS: Final = 12  # what the rings hold at the expected peak
REQUESTS_MIN: Final = 4096
GAPS_MIN: Final = 1 << 14
FREE_SHARE: Final = 0.8  # of the free room of the tmpfs, for the rings
TICK_ROWS: Final = 128  # 2.3 MB a worker: the collector may be away for 128 ticks of one target, 25 of five


class CorePlan(msgspec.Struct, frozen=True):
    """Which logical CPU each worker gets, and those left for supervisor and collector."""

    workers: list[int]
    spare: list[int]


def physical_cores(allowed: Sequence[int]) -> list[int]:
    """One logical CPU of each physical core that this process may use."""
    chosen: list[int] = []
    seen: set[str] = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        key = siblings.read_text().strip() if siblings.exists() else str(cpu)
        if key not in seen:
            seen.add(key)
            chosen.append(cpu)
    return chosen


def core_plan(workers: int) -> CorePlan:
    """Worker i on its own core, from the last to the first; supervisor and collector share the rest, or the first."""
    allowed = sorted(psutil.Process().cpu_affinity() or [0])
    cores = physical_cores(allowed)
    taken = [cores[-1 - i % len(cores)] for i in range(workers)]
    spare = [cpu for cpu in cores if cpu not in taken] or [cores[0]]
    return CorePlan(taken, spare)


def worker_count(plan: Plan) -> int:
    """How many workers the plan gets on this machine: as asked, or one per physical core but one."""
    cores = len(physical_cores(sorted(psutil.Process().cpu_affinity() or [0])))
    count = plan.workers.count or max(1, cores - 1)
    most = workers_max(plan)
    return count if most is None else min(count, most)


def workers_max(plan: Plan) -> int | None:
    """The most workers that the plan can be split among; None without a limit.

    Never more than requests may be in flight, or than complete requests fit in the burst of a requests-per-minute
    limit: each worker has an exact share of them.
    """
    limits = [most_workers(plan)]
    for phase in plan.phases:
        most = model_of(phase.load).in_flight_max(phase.load)
        limits += [None if most is None else max(1, most), phase.requests]
    return min((limit for limit in limits if limit is not None), default=None)


class Rings(NamedTuple):
    """The lanes of one worker's segment: requests, gaps between tokens, rows of live ticks."""

    requests: int
    gaps: int
    ticks: int

    @property
    def bytes(self) -> int:
        return self.requests * 256 + self.gaps * 8 + self.ticks * ROW_BYTES

    def within(self, free_bytes: float, workers: int) -> Rings:
        """These rings, halved until those of all workers fit, as far as they may shrink."""
        rings = self
        while rings.requests > REQUESTS_MIN and workers * rings.bytes > free_bytes:
            rings = rings._replace(requests=rings.requests // 2, gaps=max(rings.gaps // 2, GAPS_MIN))
        return rings


def in_flight_per_worker(plan: Plan, workers: int) -> int:
    """The most requests in flight that the plan limits a worker to; 0 where only descriptors limit them."""
    wanted = [model_of(phase.load).in_flight_max(phase.load) for phase in plan.phases]
    return max((-(-limit // workers) for limit in wanted if limit is not None), default=0)


def rings_wanted(plan: Plan, workers: int) -> Rings:
    """What holds RING_SECONDS of the expected peak of one worker."""
    peak = max(model_of(phase.load).peak_per_s(phase.load, workers) for phase in plan.phases)
    requests = max(REQUESTS_MIN, 1 << (int(peak * RING_SECONDS) - 1).bit_length())
    return Rings(requests, 1 << 20, max(TICK_ROWS, 2 * len(plan.phases) * len(plan.targets)))


def geometry_of(plan: Plan, workers: int, workers_total: int = 0, tmpfs: Path = SEGMENTS.parent) -> Geometry:
    """Ring sizes for at least RING_SECONDS of the expected peak, as far as the tmpfs allows, of `workers` on this machine
    out of `workers_total` (0: there are no others).

    Raises PlanError when the file descriptors do not suffice, SegmentError when the tmpfs does not.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    available = (1 << 20 if hard == resource.RLIM_INFINITY else hard) - DESCRIPTORS_SPARE
    sharing = workers_total or workers
    most = in_flight_per_worker(plan, sharing)
    if most > available:
        raise PlanError(
            f"{most} requests in flight per worker need {most + DESCRIPTORS_SPARE} file descriptors, the limit is {hard}; "
            f"raise it (`ulimit -n {most + DESCRIPTORS_SPARE}`, or LimitNOFILE= under systemd), "
            "use more workers or a lower concurrency"
        )
    unlimited = any(model_of(phase.load).in_flight_max(phase.load) is None for phase in plan.phases)
    in_flight = max(most, min(available, 1 << 16)) if unlimited else most
    try:
        free = shutil.disk_usage(tmpfs).free
    except OSError as error:
        raise SegmentError(f"the rings need a tmpfs at {tmpfs}: {error.strerror}; mount one there") from error
    rings = rings_wanted(plan, sharing).within(free * FREE_SHARE, workers)
    needed = workers * rings.bytes
    if needed > free:
        raise SegmentError(
            f"{tmpfs} has {free >> 20} MB free, the rings need {needed >> 20} MB; "
            "give the tmpfs more room (mount -o remount,size=...), remove what dead runs left (`lens recover` lists them) "
            "or use fewer workers"
        )
    details = max(8192, min(rings.requests, 1 << 15))  # nearly every reply has one: its request id
    return Geometry(rings.requests, rings.gaps, details, in_flight, len(plan.phases), len(plan.targets), rings.ticks)
