"""The workers of this machine as the source of a run's ticks: their rings, tick rows and details.

Everything that is read goes into the open ticks of the totals. Nothing is released to a writer before the collector says
that a checkpoint holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from ..engine.records.detail import Detail
from ..engine.records.record import LOCAL_TOKENS, UNKNOWN, Outcome
from ..engine.records.tap_status import read_tap_status
from ..engine.runs.manifest import Manifest
from . import host
from .checkpoint import Progress
from .conduct import ReplyComparison
from .health import Moment
from .intake import Drained, Intake
from .live import LiveTicks
from .self_checks import Arrivals
from .series import NOBODY, Batch, Slab
from .snapshot import HostReport, Reason
from .source import HostFacts
from .totals import Totals

_detail_of = msgspec.msgpack.Decoder(Detail).decode
GRACE_NS: Final = 50_000_000  # a tick is closed this long after its end: its last records are on their way
DETAILS_KEPT: Final = 1 << 16  # that wait for their record: more than all rings hold at once
MESSAGE_CHARS: Final = 300


class Rings:
    """See collectors.source.Source. `take_rows` gets every batch of records."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        state: Progress,
        totals: Totals,
        *,
        fresh: bool,
        count_tokens: Callable[[str], int] | None,
        take_rows: Callable[[Batch], None],
    ) -> None:
        plan = manifest.plan
        self.directory = directory
        self.totals = totals
        self.problems: list[str] = []
        self.errors = {(t, o): (message, status) for t, o, message, status in state.errors}
        self._manifest = manifest
        self._take_rows = take_rows
        self._count_tokens = count_tokens
        self._intake = Intake(directory, state, sessions=plan.workload.kind == "sessions")
        self._live = LiveTicks(len(plan.targets), state)
        self._comparison = ReplyComparison(plan.phases)
        self._arrivals = Arrivals(plan) if fresh else None
        self._details: dict[tuple[int, int, int], Detail] = {}
        for worker, blob in state.details:
            self._detail(worker, blob)

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, manifest: Manifest, now: int) -> None:
        """Drains every ring into the open ticks."""
        self._manifest = manifest
        self._intake.scan()
        for drained in self._intake.drain(finished=manifest.state == "finished"):
            self._enter(drained, now)

    @property
    def done(self) -> bool:
        return self._intake.done

    def _enter(self, drained: Drained, now: int) -> None:
        for blob in drained.details:
            self._detail(drained.worker, blob)
        details = self._claim(drained) if self._details else {}
        if self._count_tokens is not None and details:
            try:
                count_locally(drained.records, details, self._count_tokens)
            except Exception as error:  # the tokenizer's: its replies stay uncounted, the measurement goes on
                self._count_tokens = None
                self.problems.append(f"tokens are no longer counted: {type(error).__name__}: {error}")
        if details:
            self._comparison.mark(drained.records, details)
        reader = self.totals.reader
        batch = reader.batch(drained.records, worker=drained.worker, details=details)
        self.totals.enter(drained, batch, now_ns=now)
        if self._arrivals is not None:
            self._arrivals.add(drained.records)
        self._note_errors(batch)
        if len(drained.records):
            self._take_rows(batch._replace(gaps=drained.gaps, owners=drained.owners))

    def _detail(self, worker: int, blob: bytes) -> None:
        try:
            detail = _detail_of(blob)
        except msgspec.DecodeError:
            return  # can't happen, our own worker wrote it: skip it rather than abort the run
        known = self._details.setdefault((worker, detail.phase, detail.request), detail)
        if known is not detail:
            known.add(detail)
        # A record that was dropped never claims its detail: without a bound these would grow for weeks.
        if len(self._details) > DETAILS_KEPT:
            del self._details[next(iter(self._details))]

    def _claim(self, drained: Drained) -> dict[tuple[int, int], Detail]:
        """The details whose records have come. A detail is written before its record and may be read a turn earlier."""
        pairs = zip(drained.records["phase"].tolist(), drained.records["request"].tolist(), strict=True)
        return {key: detail for key in pairs if (detail := self._details.pop((drained.worker, *key), None)) is not None}

    def _note_errors(self, batch: Batch) -> None:
        if not any(detail.message for detail in batch.details.values()):
            return
        for record in batch.records[batch.records["outcome"] > Outcome.OK]:
            detail = batch.details.get((int(record["phase"]), int(record["request"])))
            if detail is not None and detail.message:
                target = int(record["target"]) if record["target"] < self.totals.reader.targets else NOBODY
                status = int(record["http_status"]) or None
                message = detail.message[:MESSAGE_CHARS]
                self.errors[target, int(record["outcome"])] = (message, status)

    # --- ticks ----------------------------------------------------------------------------------------------------

    def closing(self, now: int) -> int:
        return self.totals.tick_at(now - GRACE_NS) - self.totals.next_tick

    def look(self, end: int) -> None:
        self._live.read(self._intake.segments, self.totals.next_tick, end)

    def close(self, tick: int, issuing: Sequence[int] | None) -> Slab:
        return self.totals.close(self._live, issuing)

    def newest(self, now: int) -> int:
        self.look(self.totals.next_tick)
        # Records of the drain may have opened ticks beyond the last phase: their lines are written as well.
        return max([*self.totals.open, min(self._live.newest, self.totals.tick_at(now))])

    def fold(self, last: int) -> None:
        self._live.fold(last)

    def moment(self, now: int, write_wait_ns: int) -> Moment:
        return Moment(
            now_ns=now,
            counters=self._intake.counters_by_worker(),
            lag=self._intake.lag(),
            sample=host.sample(self._manifest.pids),
            tap=read_tap_status(self.directory),
            write_wait_ns=write_wait_ns,
            restarts=self._manifest.restarts,
        )

    @property
    def restarts(self) -> tuple[int, int, int]:
        manifest = self._manifest
        return manifest.restarts, manifest.collector_restarts, manifest.exporter_restarts

    @property
    def outages(self) -> Sequence[tuple[int, int]]:
        return self._manifest.outages

    def arrivals(self) -> list[Reason]:
        return self._arrivals.check() if self._arrivals is not None else []

    def hosts(self, now: int, *, finished: bool) -> list[HostReport]:
        return []

    def host_facts(self) -> HostFacts:
        return HostFacts()

    # --- the checkpoint -------------------------------------------------------------------------------------------

    def save(self, state: Progress) -> None:
        state.errors = [(target, outcome, *message) for (target, outcome), message in self.errors.items()]
        state.details = [(key[0], msgspec.msgpack.encode(detail)) for key, detail in self._details.items()]
        self._intake.save(state)
        self._live.save(state)

    def release(self) -> None:
        self._live.release(self._intake.segments)
        self._intake.release()


def count_locally(
    records: npt.NDArray[np.void], details: dict[tuple[int, int], Detail], count: Callable[[str], int]
) -> None:
    """Fills in the output tokens of complete replies whose provider reported none, from their text if all of it came."""
    unsaid = (records["output_tokens"] == UNKNOWN) & (records["outcome"] == Outcome.OK)
    for i in np.flatnonzero(unsaid).tolist():
        detail = details.get((int(records["phase"][i]), int(records["request"][i])))
        if detail is not None and detail.texts and len(detail.texts) == detail.pieces:
            records["output_tokens"][i] = count("".join(detail.texts))
            records["flags"][i] |= LOCAL_TOKENS
