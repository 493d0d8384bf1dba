"""Builds what exporters see: the `Snapshot` of a tick and the `Report` of the run so far. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from ..engine.load.models import model_of
from ..engine.metrics import SCALES, SHARES
from ..engine.plan.plan import SECOND, InfluxExport, Phase, Plan, PrometheusExport
from ..engine.records.record import Outcome
from ..engine.runs.manifest import Manifest
from .asked import draws, prompt_length_ratio
from .bounds import STARVED_BOUND
from .calibration.result import Calibration
from .calibration.stored import excess, quoted
from .evidence import Evidence, Layout
from .goodput import Key
from .gpus import gpus_of
from .judge import Judge
from .replies import replies_of
from .run_ladders import WINDOW_METRICS, Chosen, View
from .series import NOBODY, Series, Slab, Tally
from .slos import Slos, lines_of
from .snapshot import (
    Client,
    Distribution,
    ErrorSample,
    Goal,
    Interval,
    PhaseReport,
    Reason,
    Replies,
    Report,
    Run,
    Snapshot,
    TargetReport,
)
from .statistics import buckets, cost, mean_interval_ns, native_buckets, slice_of, slice_of_tick, unknown, window_ns
from .tick_health import LimitedTicks
from .totals import Totals
from .verdict import Facts, judge

RANGES_SHOWN: Final = 10
DIED: Final = ("died", "failed")  # how the reasons of a run begin that did not end by itself
ENDED_BY: Final = {"budget_usd": "budget", "max_error_rate": "error_rate", "handed_over": "interrupted"}

Errors = Mapping[tuple[int, int], tuple[str, int | None]]  # (target, outcome) -> latest message, HTTP status


class Losses(NamedTuple):
    """What the verdict needs from the rings' counters."""

    gap_drops: int = 0
    detail_drops: int = 0
    clock_bracket_ns: int | None = None  # the widest of the workers': how well they know kernel stamps on their clock
    overspent_usd: float = 0.0
    read_spans: tuple[tuple[int, int], ...] = ()  # in which segments had no stamps of their own
    limited: LimitedTicks = LimitedTicks()  # all but where they are
    limited_spans: tuple[tuple[int, int], ...] = ()
    problems: tuple[str, ...] = ()  # of extras that failed: prices, the tokenizer
    self_checks: tuple[Reason, ...] = ()  # that failed, once the run is over


class RunView(NamedTuple):
    """The run at one moment."""

    manifest: Manifest
    totals: Totals
    now_ns: int


Known = Callable[[Chosen], View | None]  # what is known of the certainty of these series


def nothing_known(_: Chosen) -> None:
    """While the run goes on: it would take ms for each number."""


class ReportBuilder:
    """A plan's options, and the numbers made of its totals at any moment."""

    def __init__(
        self,
        plan: Plan,
        *,
        price_date: str | None = None,
        slos: Slos | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.plan = plan
        self.calibration = calibration
        self.hdr = any(isinstance(export, InfluxExport) and export.hdr for export in plan.export)
        self.native = any(isinstance(export, PrometheusExport) for export in plan.export)
        self.lines = lines_of(plan)
        self.price_date = price_date
        self.judge = Judge(plan, slos, self._slice)

    def measured(self, key: Key) -> bool:
        return self.plan.phases[key[0]].measure

    def _slice(
        self, series: Series, seconds: float, planned: int | None = None, view: View | None = None
    ) -> dict[str, Any]:
        confidence = unknown if view is None else view.confidence
        return slice_of(
            series, seconds, conditions=bool(self.lines), date=self.price_date, planned=planned, known=confidence
        )

    # --- a tick ---------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        view: RunView,
        tick: int,
        slab: Slab,
        *,
        state: str,
        client: Client,
        in_flight: Mapping[Key, int],
        until: Sequence[Goal] = (),
    ) -> Snapshot:
        """One line of intervals.jsonl: `slab` has the tick's numbers, which are in the totals already."""
        manifest, totals = view.manifest, view.totals
        end_ns = totals.end_of(tick)
        phase = phase_at(manifest, end_ns - 1)
        everything = totals.run.sums()
        keys = set(slab.series) | {key for key, n in in_flight.items() if n} | self._present(phase)
        return Snapshot(
            run=manifest.run_id,
            tick=tick,
            wall_time_ns=manifest.anchor_wall_ns + end_ns - manifest.anchor_mono_ns,
            elapsed_s=(end_ns - totals.start_ns) / SECOND,
            seconds=totals.tick_ns / SECOND,
            state=state,
            phase=self.plan.phases[phase].name,
            in_flight=sum(in_flight.values()),
            sent_total=int(everything.tally[Tally.LIVE_SENT]),
            ok_total=int(everything.tally[Outcome.OK]),
            failed_total=everything.failed,
            unsent_total=everything.unsent,
            planned_total=planned_slots(manifest, range(len(self.plan.phases))),
            cost_usd_total=cost(everything, 0.0, date=None).usd,
            until=list(until),
            intervals=[
                self._interval(key, slab.series.get(key) or Series(), totals.tick_ns, in_flight.get(key, 0))
                for key in sorted(keys)
            ],
            client=client,
        )

    def _present(self, phase: int) -> set[Key]:
        return {(phase, target) for target in range(len(self.plan.targets))}

    def _interval(self, key: Key, series: Series, tick_ns: int, in_flight: int) -> Interval:
        phase = self.plan.phases[key[0]]
        return Interval(
            target="" if key[1] == NOBODY else self.plan.targets[key[1]].name,
            phase=phase.name,
            measured=phase.measure,
            in_flight=in_flight,
            counts=series.counts(),
            moments=series.moments(),
            buckets=buckets(series),
            native=native_buckets(series) if self.native else {},
            hdr={name: h.hdr().encode().decode() for name, h in series.shown().items()} if self.hdr else {},
            **slice_of_tick(series, tick_ns / SECOND, conditions=bool(self.lines), date=self.price_date),
        )

    # --- the run --------------------------------------------------------------------------------------------------

    def report(
        self, view: RunView, *, client_of: Callable[[Series], Client], errors: Errors, finished: bool, losses: Losses
    ) -> Report:
        """The run so far, or as it ended: with intervals, and its stationary part. Sums and percentiles are of the
        measured phases, which `client_of` gets as well; run.phases has them all."""
        totals, phases = view.totals.run, range(len(self.plan.phases))
        by_phase = {i: totals.only(partial(_in_phase, i)) for i in phases}
        windows = {i: self._window(view, i, by_phase[i]) for i in phases}
        measured = [i for i in phases if self.plan.phases[i].measure]
        seconds = sum(windows[i] for i in measured) / SECOND
        series = totals.only(self.measured)
        spans = {i: window / SECOND for i, window in windows.items()}
        evidence = Evidence(Layout.of(self.plan), totals, view.totals.ladders, spans)
        known: Known = evidence.view if finished else nothing_known
        numbers = self._slice(series, seconds, planned_slots(view.manifest, measured), known(self.measured))
        report = Report(
            run=self._run(view, by_phase, windows, known),
            targets=[self._target(i, totals, seconds, known) for i in range(len(self.plan.targets))],
            client=client_of(series),
            replies=replies_of(self.plan, totals, series, by_phase),
            errors=self._errors(totals, errors),
            **{name: value for name, value in numbers.items() if name not in SHARES},
        )
        report.gpus = gpus_of(self.plan.gpus, report.throughput)
        if finished:
            report.run.ended_by = ended_by(view.manifest, self.plan, by_phase)
            report.steady = self.judge.steady(view.totals, series, spans)
        report.verdict = judge(self._facts(view.manifest, report, by_phase, windows, series, finished, losses))
        report.slo = self.judge.objectives(view.totals, report, spans, finished=finished)
        return report

    def _window(self, view: RunView, phase: int, series: Series) -> int:
        manifest = view.manifest
        stopped = bool(manifest.stop_reason)
        return window_ns(self.plan.phases[phase], manifest.phases[phase], series, now_ns=view.now_ns, stopped=stopped)

    def _run(
        self,
        view: RunView,
        by_phase: Mapping[int, Series],
        windows: Mapping[int, int],
        known: Known,
    ) -> Run:
        manifest, start_ns = view.manifest, view.totals.start_ns
        last_end = max((int(series.tally[Tally.LAST_END]) for series in by_phase.values()), default=0)
        measured = [phase.load.model for phase in self.plan.phases if phase.measure]
        return Run(
            id=manifest.run_id,
            name=self.plan.name,
            version=manifest.version,
            started_at=manifest.started_at,
            duration_s=max(0, (last_end or view.now_ns) - start_ns) / SECOND if start_ns else 0.0,
            phases=[self._phase(view, i, by_phase[i], windows[i], known(partial(_in_phase, i))) for i in by_phase],
            load=(measured or [self.plan.phases[0].load.model])[0],
            seed=self.plan.seed,
            plan_sha256=manifest.plan_sha256,
            host=manifest.host,
        )

    def _phase(self, view: RunView, index: int, series: Series, window: int, known: View | None) -> PhaseReport:
        phase, times, now_ns = self.plan.phases[index], view.manifest.phases[index], view.now_ns
        begun = 0 < times.start_ns <= now_ns
        end_ns = max(min(times.end_ns or now_ns, now_ns), int(series.tally[Tally.LAST_END]))
        return PhaseReport(
            name=phase.name,
            load=phase.load.model,
            measured=phase.measure,
            start_s=(times.start_ns - view.totals.start_ns) / SECOND if begun else 0.0,
            duration_s=(end_ns - times.start_ns) / SECOND if begun else 0.0,
            window_s=window / SECOND,
            **self._slice(series, window / SECOND, times.planned, known),
        )

    def _target(self, index: int, totals: Slab, seconds: float, known: Known) -> TargetReport:
        target = self.plan.targets[index]

        def chosen(key: Key) -> bool:
            return key[1] == index and self.measured(key)

        numbers = self._slice(totals.only(chosen), seconds, view=known(chosen))
        return TargetReport(name=target.name, provider=target.provider, model=target.model, **numbers)

    def _errors(self, totals: Slab, errors: Errors) -> list[ErrorSample]:
        samples = []
        for (target, outcome), (message, status) in sorted(errors.items()):
            count = sum(int(s.tally[outcome]) for key, s in totals.series.items() if key[1] == target)
            name = self.plan.targets[target].name if target != NOBODY else ""
            outcome_name = Outcome(outcome).name.lower()
            samples.append(
                ErrorSample(target=name, outcome=outcome_name, count=count, message=message, http_status=status)
            )
        return samples

    def _facts(
        self,
        manifest: Manifest,
        report: Report,
        by_phase: Mapping[int, Series],
        windows: Mapping[int, int],
        series: Series,
        finished: bool,
        losses: Losses,
    ) -> Facts:
        plan, tally = self.plan, series.tally
        measured = {i: plan.phases[i] for i in by_phase if plan.phases[i].measure}
        slots = {i: by_phase[i].sent + by_phase[i].unsent for i in by_phase}
        counted = [i for i in by_phase if manifest.phases[i].planned is not None and manifest.phases[i].start_ns]
        interval = mean_interval_ns(measured, windows, slots)
        lateness = _client_lateness(plan.phases, by_phase)
        return Facts(
            client=report.client,
            ok=report.requests.ok,
            sent=series.sent,
            unsent=series.unsent,
            planned=sum(manifest.phases[i].planned or 0 for i in counted) if counted else None,
            settled=sum(slots[i] for i in counted),
            finished=finished,
            in_flight_at_end=report.requests.in_flight_at_end,
            timeouts=int(tally[Outcome.TIMEOUT_TOTAL] + tally[Outcome.TIMEOUT_FIRST_TOKEN]),
            stepped=int(tally[Tally.STEPPED]),
            gap_drops=losses.gap_drops,
            detail_drops=losses.detail_drops,
            open_loop=lateness is not None,
            closed_loop=any(not model_of(phase.load).is_open for phase in measured.values()),
            mean_interval_ms=None if interval is None else interval / SCALES["lateness_ms"],
            client_lateness_p99_ms=lateness,
            clock_bracket_ns=losses.clock_bracket_ns,
            outages=tick_ranges(manifest.outages, manifest.phases[0].start_ns, plan.output.tick_ns),
            overspent_usd=losses.overspent_usd,
            read_ticks=tick_ranges(losses.read_spans, manifest.phases[0].start_ns, plan.output.tick_ns),
            limited=losses.limited._replace(
                where=tick_ranges(losses.limited_spans, manifest.phases[0].start_ns, plan.output.tick_ns)
            ),
            problems=losses.problems,
            self_checks=losses.self_checks,
            prompt_length_ratio=prompt_length_ratio(series),
            replies=report.replies or Replies(),
            draws=draws(plan.phases, manifest.phases),
            died=manifest.stop_reason if manifest.stop_reason.startswith(DIED) else "",
            unsteady=report.steady.reason if report.steady and report.steady.state == "drifting" else "",
            correlated=correlated(report.metrics),
            **self._calibrated(manifest, report),
        )

    def _calibrated(self, manifest: Manifest, report: Report) -> dict[str, Any]:
        """The facts that this host's calibration knows."""
        known, client = self.calibration, report.client
        if known is None:
            return {}
        secure = all(target.base_url.startswith("https:") for target in self.plan.targets)
        stalled = any(
            share is not None and share > STARVED_BOUND for share in (client.run_queue_wait_share, client.stopped_share)
        )
        return {
            "calibration": quoted(known, report, transport="tls" if secure else "tcp", stalled=stalled),
            "beyond_ceiling": excess(self.plan, manifest.workers, known),
        }


def tick_ranges(spans: Sequence[tuple[int, int]], start_ns: int, tick_ns: int) -> str:
    """The ticks that these spans of time touch, in words: `ticks 3, 7-9`; the first RANGES_SHOWN ranges, then the last."""
    ranges: list[list[int]] = []
    for first, last in sorted((max(0, a - start_ns) // tick_ns, max(0, b - start_ns) // tick_ns) for a, b in spans):
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1][1] = max(ranges[-1][1], last)
        else:
            ranges.append([first, last])
    words = [f"{first}-{last}" if last > first else f"{first}" for first, last in ranges]
    if len(words) > RANGES_SHOWN:
        words[RANGES_SHOWN:] = [f"... {len(words) - RANGES_SHOWN - 1} more ..., {words[-1]}"]
    return f"ticks {', '.join(words)}" if words else ""


def ended_by(manifest: Manifest, plan: Plan, by_phase: Mapping[int, Series]) -> str:
    """What ended a run that is over."""
    reason = manifest.stop_reason
    if manifest.interrupted:
        return "interrupted"
    if reason:
        return "failed" if reason.startswith(DIED) else ENDED_BY.get(reason, reason)
    last = plan.phases[-1]
    slots = by_phase[len(plan.phases) - 1]
    complete = last.requests is not None and slots.sent + slots.unsent >= last.requests
    return "requests" if complete or last.duration_ns is None else "duration"


def correlated(metrics: Mapping[str, Distribution]) -> str:
    """The metrics whose values are worth less than half as many independent ones, in words."""
    found = [(name, metrics[name]) for name in WINDOW_METRICS if name in metrics]
    return ", ".join(
        f"{name}: {each.count} requests are worth {each.n_eff:.0f} independent ones"
        for name, each in found
        if each.n_eff is not None and each.n_eff < each.count / 2
    )


def _in_phase(phase: int, key: Key) -> bool:
    return key[0] == phase


def _client_lateness(phases: Sequence[Phase], by_phase: Mapping[int, Series]) -> float | None:
    """p99 of the client's own lateness over the measured phases whose slots are fixed in time."""
    total = Series()
    for index, series in by_phase.items():
        phase = phases[index]
        if phase.measure and model_of(phase.load).all_timed:
            total.add(series)
    values = total.metrics["client_lateness_ms"].percentiles([99.0]) if "client_lateness_ms" in total.metrics else None
    return None if values is None else values[0] / SCALES["client_lateness_ms"]


def phase_at(manifest: Manifest, moment_ns: int) -> int:
    """The phase that had begun last at this moment."""
    begun = [i for i, times in enumerate(manifest.phases) if times.start_ns and times.start_ns <= moment_ns]
    return begun[-1] if begun else 0


def planned_slots(manifest: Manifest, phases: Sequence[int]) -> int | None:
    """The slots of these phases, None while one is not known."""
    numbers = [manifest.phases[i].planned for i in phases]
    known = [number for number in numbers if number is not None]
    return sum(known) if numbers and len(known) == len(numbers) else None
