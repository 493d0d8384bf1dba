"""The collectors of other hosts as the source of a run's ticks: what the driver's collector merges.

A tick is closed when every host has sent it, is past it, or will send none any more. What a lost host left is settled at
the end: requests that it had sent and not ended are `lost`, its share of the plan's slots that nothing is known of was
not sent: `worker_down`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ...engine.hosts.relay import TickFolder, incoming
from ...engine.hosts.shares import Span, slots_of
from ...engine.records.lag import LAG_BUCKETS
from ...engine.runs.manifest import Manifest
from .. import host
from ..checkpoint import HostProgress, Progress
from ..health import Moment
from ..series import Slab
from ..snapshot import HostReport, Reason
from ..source import HostFacts
from ..totals import Totals
from .disagree import disagreement
from .member import Member
from .merge import merged, merged_live

CLOSED_AT_ONCE_MAX: Final = 100
REPORT_EVERY_NS: Final = 1_000_000_000


class Hosts:
    """See collectors.source.Source."""

    def __init__(self, directory: Path, manifest: Manifest, state: Progress, totals: Totals) -> None:
        self.totals = totals
        self.problems: list[str] = []
        known = state.hosts or [HostProgress() for _ in manifest.hosts]
        self.members = [
            Member(index, each, TickFolder(incoming(directory, index)), saved, manifest)
            for index, (each, saved) in enumerate(zip(manifest.hosts, known, strict=True))
        ]
        self._errors = {(t, o): (message, status) for t, o, message, status in state.errors}
        self._manifest = manifest
        self._reports: list[HostReport] = []
        self._reported_ns = -REPORT_EVERY_NS
        self.release()  # what a checkpoint holds and its collector could not remove any more

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, manifest: Manifest, now: int) -> None:
        """Looks which ticks have come. The states in the manifest are older than that: a host that is done by then has
        all its ticks here."""
        self._manifest = manifest
        for member, state in zip(self.members, manifest.hosts, strict=True):
            member.look(state, manifest.phases[0].start_ns)

    @property
    def done(self) -> bool:
        return True

    def closing(self, now: int) -> int:
        """As many as nobody is still to send. None where nobody has sent one: a host that will not is no reason to."""
        newest = max(member.newest for member in self.members)
        behind = [member.newest for member in self.members if not member.over]
        return min(min([newest, *behind]) + 1 - self.totals.next_tick, CLOSED_AT_ONCE_MAX)

    def newest(self, now: int) -> int:
        return max(member.newest for member in self.members)

    def look(self, end: int) -> None:
        """Nothing: `read` saw the ticks, `close` reads them."""

    def fold(self, last: int) -> None:
        """Nothing: every tick of every host is closed."""

    # --- ticks ----------------------------------------------------------------------------------------------------

    def close(self, tick: int, issuing: Sequence[int] | None) -> Slab:
        ticks, senders = [], []
        for member in self.members:
            content = member.read(tick)
            if content is not None:
                ticks.append((content, member.shift_ns))
                senders.append(member)
                self._errors |= {(t, o): (message, status) for t, o, message, status in content.errors}
        slab = merged(ticks)
        for member, (content, _) in zip(senders, ticks, strict=True):
            member.enter(content, slab)
        if issuing is None and tick >= self.newest(0):  # the last tick of the run
            for member in self.members:
                if member.state.state == "lost":
                    member.settle(slab, self._planned(member))
        self.totals.take(slab, issuing)
        for key, live in merged_live(ticks).items():
            slab.at(key).live = live
        for series in slab.series.values():
            series.live = series.live or {}
        return slab

    def _planned(self, member: Member) -> dict[int, int]:
        """The host's slots by phase, of the phases that began and whose slots can be counted."""
        span = Span(member.state.first_worker, member.state.workers)
        found = {}
        for phase, times in enumerate(self._manifest.phases):
            slots = slots_of(times.planned, span, self._manifest.workers) if times.start_ns else None
            if slots is not None:
                found[phase] = slots
        return found

    # --- the measuring side ---------------------------------------------------------------------------------------

    def moment(self, now: int, write_wait_ns: int) -> Moment:
        """All hosts as one: counters by worker, whose numbers run over all hosts, sums of the rest. The time is that of the
        hosts' readings: shares of it would be wrong by how long they were on their way."""
        latest = [member.latest for member in self.members]
        lag = np.zeros(LAG_BUCKETS, np.int64)
        for each in latest:
            if each.lag:
                lag += np.frombuffer(each.lag, np.int64)
        usage = {
            member.state.name: host.Usage(0.0, round(member.latest.rss_mb * host.MEGABYTE))
            for member in self.members
            if member.latest.rss_mb is not None
        }
        taken = [member.latest.now_ns + member.shift_ns for member in self.members if member.latest.now_ns]
        return Moment(
            now_ns=max(taken, default=now),
            counters={worker: counts for each in latest for worker, counts in each.counters.items()},
            lag=lag,
            sample=host.Sample(
                usage,
                _sum([each.steal for each in latest]),
                _sum([each.total for each in latest]),
                _sum([each.retransmits for each in latest]),
            ),
            stamped=all(each.stamped for each in latest if each.counters),
            write_wait_ns=write_wait_ns,
            restarts=self.restarts[0],
        )

    @property
    def errors(self) -> dict[tuple[int, int], tuple[str, int | None]]:
        return self._errors

    @property
    def restarts(self) -> tuple[int, int, int]:
        workers, collectors, exporters = (sum(member.latest.restarts[i] for member in self.members) for i in range(3))
        manifest = self._manifest
        return workers, collectors + manifest.collector_restarts, exporters + manifest.exporter_restarts

    @property
    def outages(self) -> Sequence[tuple[int, int]]:
        return sorted(
            (start + member.shift_ns, end + member.shift_ns)
            for member in self.members
            for start, end in member.latest.outages
        )

    def arrivals(self) -> list[Reason]:
        return [Reason("arrivals", problem) for member in self.members for problem in member.problems]

    def hosts(self, now: int, *, finished: bool) -> list[HostReport]:
        """While the run goes on made anew once a second: each takes 0.3 ms, and ticks may be short."""
        if finished or now - self._reported_ns >= REPORT_EVERY_NS:
            self._reports, self._reported_ns = self._hosts(), now
        return self._reports

    @property
    def _measured(self) -> list[bool]:
        return [phase.measure for phase in self._manifest.plan.phases]

    def _hosts(self) -> list[HostReport]:
        measured = self._measured
        planned = [self._planned(member) for member in self.members]
        return [
            member.report(measured, slots, self.totals) for member, slots in zip(self.members, planned, strict=True)
        ]

    def host_facts(self) -> HostFacts:
        tick_ns, next_tick = self.totals.tick_ns, self.totals.next_tick
        lost = [
            f"{member.state.name} ({member.state.why or 'lost'}; {affected(member.newest, next_tick)})"
            for member in self.members
            if member.state.state == "lost"
        ]
        unclear = [
            f"{member.state.name} by up to {member.state.clock_bound_ns / 1e6:.3f} ms"
            for member in self.members
            if member.state.clock_bound_ns is not None and member.state.clock_bound_ns > tick_ns / 100
        ]
        return HostFacts(
            lost=f"lost {', '.join(lost)}" if lost else "",
            unclear=f"tick edges are off: {', '.join(unclear)}, > a hundredth of a tick" if unclear else "",
            disagree=disagreement(self.members, self.totals.ladders, self._measured),
        )

    # --- the checkpoint -------------------------------------------------------------------------------------------

    def save(self, state: Progress) -> None:
        state.errors = [(target, outcome, *message) for (target, outcome), message in self._errors.items()]
        state.hosts = [member.saved() for member in self.members]

    def release(self) -> None:
        for member in self.members:
            member.folder.remove(self.totals.next_tick)


def affected(last_tick: int, next_tick: int) -> str:
    """The ticks without a host whose last one was `last_tick`."""
    first, last = last_tick + 1, next_tick - 1
    return f"tick {first}" if last <= first else f"ticks {first}-{last}"


def _sum(values: Sequence[int | None]) -> int | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
