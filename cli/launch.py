"""Makes what a run works in and starts its supervisor: for `lens run` and for each run of a probe.

Everything that can be refused is checked before anything is made. From the first file on signals are counted and not
raised (engine.runs.interrupts), so that a run directory either gets a summary, or can be recovered, or is removed again.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..collectors.host import describe
from ..engine import __version__
from ..engine.errors import LensError, PlanError
from ..engine.load.models import planned_slots
from ..engine.plan.plan import Plan
from ..engine.plan.price import price, read_price_table
from ..engine.plan.written import secrets, stripped
from ..engine.planfile.build import plan_sha256
from ..engine.process import environ_without_keys
from ..engine.records.layout import Geometry
from ..engine.runs.interrupts import Interrupts
from ..engine.runs.locality import LocalServer, local_servers, wants_real_time
from ..engine.runs.manifest import Manifest, PhaseTimes
from ..engine.runs.placement import geometry_of, worker_count
from ..engine.runs.rundir import (
    SUMMARY,
    discard_run_dir,
    latest_of,
    make_run_dir,
    make_segment_dir,
    remove_segments,
)
from ..engine.runs.supervisor import Supervisor
from ..engine.runs.tap import TapProcess, servers_of, start_tap
from ..engine.wire.proxy import proxied
from ..engine.wire.tap.filters import Server
from ..engine.wire.tap.process import refusal

PROC = Path("/proc/self/stat")


class Stamps(NamedTuple):
    """How the run's arrivals are stamped. `refusal`: why there is no tap although the plan leaves it open."""

    tap: TapProcess | None = None
    refusal: str = ""
    local: tuple[LocalServer, ...] = ()
    realtime: bool = False


def host_problems(plan: Plan, servers: Collection[Server]) -> list[str]:
    """The names of `lens doctor`'s checks that are not ok here, of those that only read: some ms, nothing is measured."""
    from ..collectors.doctor.needs import needs_of
    from ..collectors.doctor.reading import read_facts
    from ..collectors.doctor.table import examine_passively

    needs = needs_of(plan, [(server.address, server.port) for server in servers])
    return examine_passively(read_facts(needs, tap_refusal=refusal())).not_ok


def stamps_of(plan: Plan, segment_dir: Path, servers: Collection[Server]) -> Stamps:
    """Starts the tap where the plan wants one. Raises PlanError if it insists on one and there can be none."""
    local = tuple(local_servers(servers))
    realtime = wants_real_time(plan, local)
    if plan.stamps == "read":
        return Stamps(local=local, realtime=realtime)
    tap = start_tap(segment_dir, servers, environ_without_keys(os.environ, frozenset(secrets(plan))))
    if isinstance(tap, TapProcess):
        return Stamps(tap, local=local, realtime=realtime)
    if plan.stamps == "segment":
        raise PlanError(f"stamps: segment is not possible: {tap}; `stamps: auto` goes on without")
    return Stamps(None, tap, local, realtime)


class Launch:
    """A run whose directories are made and whose supervisor has not started."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        run_dir: Path,
        segment_dir: Path,
        *,
        geometry: Geometry,
        prices: Sequence[tuple[int, int]],
        interrupts: Interrupts,
        stamps: Stamps,
    ) -> None:
        self.plan = plan
        self.manifest = manifest
        self.run_dir = run_dir
        self.segment_dir = segment_dir
        self._geometry = geometry
        self._prices = prices
        self._interrupts = interrupts
        self.stamps = stamps

    def supervisor(self, on_tick: Callable[[], str | None], *, starts_wall_ns: int = 0) -> Supervisor:
        """What carries the run out; see there."""
        collector = [sys.executable, "-m", "llm_latency_lens.cli.processes.collect"]
        return Supervisor(
            self.plan,
            self.manifest,
            self.segment_dir,
            [*collector, "--segment-dir", str(self.segment_dir), "--parent", str(os.getpid())],
            self._geometry,
            self._interrupts,
            prices=self._prices,
            on_tick=on_tick,
            starts_wall_ns=starts_wall_ns,
            tap=self.stamps.tap,
            realtime=self.stamps.realtime,
        )


@contextmanager
def launched(plan: Plan, run_id: str, interrupts: Interrupts, *, prices: Sequence[tuple[int, int]]) -> Iterator[Launch]:
    """The run directory, the segment directory and the manifest of a run that is carried out in the `with` block.

    `prices` are budget_prices(plan). Afterwards what is no longer needed is removed: the segments once there is a summary, everything if nothing was sent.
    Raises LensError.
    """
    os.umask(0o077)  # rows may hold prompts and replies: the run's files are for this user alone
    if not PROC.exists():
        raise LensError("/proc is not mounted; a run needs it (mount -t proc proc /proc)")
    workers = worker_count(plan)
    geometry = geometry_of(plan, workers)
    planned = [planned_slots(plan, index) for index in range(len(plan.phases))]
    servers = servers_of(plan, os.environ)
    problems = host_problems(plan, servers)  # before the rings take their room
    previous = latest_of(Path(plan.output.dir))
    interrupts.defer()
    run_dir = make_run_dir(plan, run_id)
    segment_dir: Path | None = None
    stamps = Stamps()
    manifest = manifest_of(plan, run_id, run_dir, workers, planned)
    manifest.host["doctor"] = problems
    try:
        segment_dir = make_segment_dir(run_dir)
        manifest.write(segment_dir)
        stamps = stamps_of(plan, segment_dir, servers)
        if stamps.tap is not None:
            manifest.pids["tap"] = stamps.tap.pid
        yield Launch(
            plan,
            manifest,
            run_dir,
            segment_dir,
            geometry=geometry,
            prices=prices,
            interrupts=interrupts,
            stamps=stamps,
        )
    finally:
        if stamps.tap is not None:
            stamps.tap.close()
        reported = (run_dir / SUMMARY).exists()
        never_began = manifest.state == "starting"
        if segment_dir is not None and (reported or never_began):  # else `lens recover` needs them
            remove_segments(run_dir, segment_dir)
        if never_began and not reported:
            discard_run_dir(run_dir, previous)
        interrupts.raise_again()


def manifest_of(plan: Plan, run_id: str, run_dir: Path, workers: int, planned: Sequence[int | None]) -> Manifest:
    """The manifest of a run that has not begun; `planned` slots of each phase."""
    return Manifest(
        run_id=run_id,
        run_dir=str(run_dir.absolute()),
        version=__version__,
        plan=stripped(plan),
        plan_sha256=plan_sha256(plan),
        workers=workers,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        phases=[PhaseTimes(planned=slots) for slots in planned],
        proxied=[target.name for target in plan.targets if proxied(target, os.environ)],
        pids={"supervisor": os.getpid()},
        # Here, not in the collector: that one is pinned, and would count only its own cores as usable.
        host=describe(),
    )


def budget_prices(plan: Plan) -> list[tuple[int, int]]:
    """Pico-USD per input and output token of each target, its dearest tier, where the plan has a budget to keep.

    Checks the plan's prices and price table, budget or not. Raises PlanError for one that is wrong, and with a budget
    for a target whose price nobody knows: its spend could not be limited.
    """
    for target in plan.targets:
        if target.price is not None:
            try:
                price(target.price)
            except PlanError as error:
                raise PlanError(f"target {target.name!r}: {error}") from error
    if plan.price_table:
        read_price_table(plan.price_table)
    if plan.limits.budget_usd is None:
        return []
    from ..collectors.cost import prices_of

    found: list[tuple[int, int]] = []
    for target, tiers in zip(plan.targets, prices_of(plan).tiers, strict=True):
        if not tiers:
            raise PlanError(
                f"budget_usd needs the price of {target.model!r} (target {target.name!r}), which is in no table; "
                "give the target a price: {input: USD, output: USD} per million tokens"
            )
        found.append((max(max(t.input, t.cache_write) for t in tiers), max(max(t.output, t.reasoning) for t in tiers)))
    return found
