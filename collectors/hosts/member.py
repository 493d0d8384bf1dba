"""One host of a run as the driver's collector sees it: which of its ticks are here, and what it did beside the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ...engine.hosts.relay import TickFolder
from ...engine.metrics import SCALES
from ...engine.records.record import Outcome, Unsent
from ...engine.runs.manifest import HostState, Manifest
from ..checkpoint import HostProgress
from ..goodput import Key
from ..health import client_of_run
from ..histogram import Histogram
from ..series import NOBODY, Series, Slab, Tally
from ..snapshot import HostReport
from ..statistics import distribution, requests
from ..totals import Totals
from .merge import add_tallies
from .tick import DECODER, HostTick

METRIC: Final = "ttft_ms"  # by which hosts are held against each other
_encode = msgspec.msgpack.Encoder().encode


class Member:
    """Its ticks come in order; `enter` counts one, `saved` is for the checkpoint."""

    def __init__(
        self, index: int, state: HostState, folder: TickFolder, saved: HostProgress, manifest: Manifest
    ) -> None:
        self.state = state
        self.times = f"{METRIC}@{index}"  # the name of its own distribution among those of the totals
        self.folder = folder
        self.newest = saved.newest  # of the ticks that are here, or were
        self.settled = saved.settled
        self.latest = DECODER.decode(saved.latest) if saved.latest else HostTick()
        self._start_ns = 0
        self._targets = len(manifest.plan.targets)
        self._series: dict[Key, Series] = {}
        for phase, target, tally in saved.tallies:
            self._series[phase, target] = series = Series()
            series.tally = np.frombuffer(tally, np.int64).copy()

    def look(self, state: HostState, start_ns: int) -> None:
        """Takes its state of the manifest; `start_ns` is the start of the run on the driver's clock."""
        self.state = state
        self._start_ns = start_ns
        self.newest = max([self.newest, *self.folder.numbers()[-1:]])

    @property
    def over(self) -> bool:
        """It will send no tick any more."""
        return self.state.state in ("done", "lost")

    @property
    def problems(self) -> Sequence[str]:
        return [f"{self.state.name}: {problem}" for problem in self.latest.problems]

    @property
    def shift_ns(self) -> int:
        """What to add to a moment of its clock: both clocks at the start of the run."""
        return self._start_ns - self.state.start_ns

    def read(self, tick: int) -> HostTick | None:
        """None for a tick that it does not have."""
        try:
            return DECODER.decode(self.folder.read(tick))
        except FileNotFoundError:
            return None

    def enter(self, content: HostTick, slab: Slab) -> None:
        """Counts a tick as this host's, and puts its times to the first token into the merged `slab` under a name of their
        own, of each phase with the first target: so they are in the totals, the ladders and the checkpoint."""
        times: dict[int, list[Any]] = defaultdict(list)
        for key, (tally, metrics, _, _) in content.slab:
            add_tallies(self._series.setdefault((key[0], key[1]), Series()), [tally], [self.shift_ns])
            if METRIC in metrics:
                times[key[0]].append(metrics[METRIC])
        for phase, packs in times.items():
            slab.at((phase, 0)).metrics[self.times] = Histogram.summed(packs)
        host = content.host or self.latest.host
        self.latest = msgspec.structs.replace(content, slab=[], live=[], host=host)

    def settle(self, slab: Slab, planned: Mapping[int, int]) -> None:
        """Enters what a lost host left behind, here and into `slab`: requests that it had sent and not ended are lost,
        slots that nothing is known of were not sent. `planned` has its slots by phase."""
        if self.settled:
            return
        left = dict(planned)
        for key, series in sorted(self._series.items()):
            lost = max(0, int(series.tally[Tally.LIVE_SENT]) - series.sent)
            if key[0] in left:
                left[key[0]] -= series.sent + series.unsent + lost
            self._leave(slab, key, lost, 0)
        for phase, slots in left.items():
            self._leave(slab, (phase, 0 if self._targets == 1 else NOBODY), 0, slots)
        self.settled = True

    def _leave(self, slab: Slab, key: Key, lost: int, unsent: int) -> None:
        if lost > 0 or unsent > 0:
            series = self._series.setdefault(key, Series())
            for tally in (slab.at(key).tally, series.tally):
                tally[Outcome.LOST] += max(0, lost)
                tally[Tally.ATTEMPTS] += max(0, lost)
                tally[Outcome.UNSENT] += max(0, unsent)
                tally[Tally.UNSENT_REASON + Unsent.WORKER_DOWN] += max(0, unsent)

    def report(self, measured: Sequence[bool], planned: Mapping[int, int], totals: Totals) -> HostReport:
        """Its part of the run so far, of the phases that are `measured`."""
        total = Series()
        for key, series in self._series.items():
            if measured[key[0]]:
                total.add_counts(series)
        counted = [slots for phase, slots in planned.items() if measured[phase]]
        state, latest = self.state, self.latest
        times = Histogram()
        for key, series in totals.run.series.items():
            if measured[key[0]] and self.times in series.metrics:
                times.add(series.metrics[self.times])
        return HostReport(
            name=state.name,
            workers=state.workers,
            state=state.state,
            clock_bound_us=None if state.clock_bound_ns is None else state.clock_bound_ns / 1e3,
            start_skew_us=None if state.start_skew_ns is None else state.start_skew_ns / 1e3,
            requests=requests(total, planned=sum(counted) if len(counted) == sum(measured) else None),
            client=client_of_run(
                latest.moment(), total, latest.health, workers=state.workers, restarts=latest.restarts
            ),
            ttft_ms=distribution(times, scale=SCALES[METRIC], n_eff=times.count),
            host=latest.host,
        )

    def saved(self) -> HostProgress:
        return HostProgress(
            tallies=[(*key, series.tally.tobytes()) for key, series in self._series.items()],
            latest=_encode(self.latest),
            newest=self.newest,
            settled=self.settled,
        )
