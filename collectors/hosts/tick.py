"""What one host says of one tick: its numbers, and the cumulated readings of its measuring side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ...engine.errors import LensError
from ...engine.hosts.relay import TickFolder
from .. import host
from ..checkpoint import Health, Progress
from ..health import Moment, segment_stamps
from ..series import Slab
from ..source import Source

KEPT_MAX: Final = 1000  # ticks in memory while tmpfs takes none


class HostTick(msgspec.Struct, kw_only=True):
    """Times are of the host's own CLOCK_MONOTONIC. `slab` is Slab.packed(), `live` the distributions beside it that
    packed() leaves out: [phase, target, {metric: Histogram.packed()}]."""

    slab: list[Any] = []
    live: list[Any] = []
    now_ns: int = 0  # when the readings below were taken
    counters: dict[int, list[int]] = {}  # by worker
    lag: bytes = b""
    steal: int | None = None
    total: int | None = None
    retransmits: int | None = None
    rss_mb: float | None = None
    stamped: bool = False  # every segment kept its own stamp in this tick
    health: Health = msgspec.field(default_factory=Health)
    restarts: tuple[int, int, int] = (0, 0, 0)
    outages: list[tuple[int, int]] = []
    errors: list[tuple[int, int, str, int | None]] = []
    problems: list[str] = []
    host: dict[str, Any] = {}  # what kind of machine it is

    def moment(self) -> Moment:
        """The readings as the collector of the host had them."""
        usage = {} if self.rss_mb is None else {"host": host.Usage(0.0, round(self.rss_mb * host.MEGABYTE))}
        return Moment(
            now_ns=self.now_ns,
            counters=self.counters,
            lag=np.frombuffer(self.lag, np.int64),
            sample=host.Sample(usage, self.steal, self.total, self.retransmits),
            stamped=self.stamped,
        )


_ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(HostTick)


class TickRelay:
    """Writes a host's closed ticks for its agent (engine.hosts.relay): readable once the checkpoint holds them, so that
    what the driver counted is never counted again."""

    def __init__(self, folder: TickFolder, described: dict[str, Any]) -> None:
        self._folder = folder
        self._described = described
        self._waiting: dict[int, bytes] = {}  # that tmpfs did not take
        self._before: Moment | None = None

    def ticks(self, closed: Sequence[tuple[int, Slab]], moment: Moment, source: Source, state: Progress) -> None:
        """Stages them. The readings are those of the moment: ticks that are closed together share them."""
        made = HostTick(
            now_ns=moment.now_ns,
            counters={worker: list(counts) for worker, counts in moment.counters.items()},
            lag=moment.lag.tobytes(),
            steal=moment.sample.steal,
            total=moment.sample.total,
            retransmits=moment.sample.retransmits,
            rss_mb=moment.sample.rss_mb_max,
            stamped=segment_stamps(self._before, moment),
            health=state.health,
            restarts=source.restarts,
            outages=list(source.outages),
            errors=[(target, outcome, *message) for (target, outcome), message in source.errors.items()],
            problems=list(source.problems),
            host=self._described,
        )
        for tick, slab in closed:
            made.slab, made.live = slab.packed(), live_of(slab)
            self._waiting[tick] = _ENCODER.encode(made)
        self._before = moment
        self._stage()

    def _stage(self) -> None:
        for tick, content in list(self._waiting.items()):
            try:
                self._folder.stage(tick, content)
            except OSError as error:
                if len(self._waiting) > KEPT_MAX:
                    raise LensError(f"the ticks for the driver cannot be kept: {error.strerror}") from error
                return
            del self._waiting[tick]

    def release(self, next_tick: int) -> None:
        self._folder.commit(next_tick)


def live_of(slab: Slab) -> list[Any]:
    """The distributions of what happened in the tick, of each series that has some."""
    return [
        [*key, {name: histogram.packed() for name, histogram in series.live.items()}]
        for key, series in slab.series.items()
        if series.live
    ]
