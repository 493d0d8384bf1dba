"""From sums to the numbers people read: distributions, rates, sums. Pure; the only place where ns become ms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from ..engine.load.models import model_of
from ..engine.metrics import BUCKETS, METRICS, NATIVE_SCHEMA, PERCENTILES, SCALES
from ..engine.plan.plan import SECOND, Phase
from ..engine.records.record import FAILURES, Outcome, Unsent
from ..engine.runs.manifest import PhaseTimes
from .confidence import INTERVALS, P99_9_NEEDS, Confidence, Interval, point, scaled
from .histogram import Histogram
from .rollup import PICO_PER_USD, UNRECORDED
from .series import Series, Tally
from .snapshot import Bounds, Ci95, Cost, Distribution, Requests, Throughput, Tokens

DAY_S: Final = 86_400


def effective_size(metric: str, histogram: Histogram, series: Series) -> int:
    """How many independent observations a distribution of a tick rests on, where its own correlation is not known.
    Requests are taken as independent; the gaps of one stream are not (they share its batch, its prompt and its minute),
    so pooled `itl_ms` counts each stream once."""
    return min(histogram.count, int(series.tally[Tally.STREAMS])) if metric == "itl_ms" else histogram.count


def distribution(
    histogram: Histogram | None, *, scale: float, n_eff: int, known: Confidence | None = None
) -> Distribution:
    """A histogram in the metric's unit (`scale` histogram units each), with its intervals where `known` has them.

    `n_eff` stands in where nothing is known of the correlation of the values."""
    if histogram is None or not histogram.count:
        return Distribution()
    values = histogram.percentiles(list(PERCENTILES.values()))
    assert values is not None
    p50, p90, p95, p99, p99_9 = (value / scale for value in values)
    return Distribution(
        count=histogram.count,
        mean=_scaled(histogram.mean, scale),
        stddev=_scaled(histogram.stddev, scale),
        min=_scaled(histogram.min, scale),
        max=_scaled(histogram.max, scale),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9 if (known.supports_p99_9 if known else n_eff >= P99_9_NEEDS) else None,
        n_eff=known.n_eff if known else None,
        ci95=intervals(histogram, known, scale) if known else None,
    )


def intervals(histogram: Histogram, known: Confidence, scale: float) -> Ci95:
    """The intervals of a histogram in the metric's unit."""
    found: dict[str, Bounds] = {}
    for name in INTERVALS:
        each = interval_of(histogram, known.intervals.get(name), name, scale)
        found[name] = (None, None) if each is None else (each.low, each.high)
    return Ci95(**found)


def interval_of(histogram: Histogram, found: Interval | None, statistic: str, scale: float) -> Interval | None:
    """An interval in the metric's unit, moved from the middles and ends of cells to the exact values where those are
    known: the mean, and the extremes, which no percentile exceeds. Values that are all equal are as sure as can be."""
    low, high, mean = histogram.min, histogram.max, histogram.mean
    if low is None or high is None or mean is None:
        return None
    if low == high:
        return point(low / scale, histogram.count)
    if found is None:
        return None
    if statistic == "mean":
        moved = mean - found.value
        ends = [None if each is None else each + moved for each in (found.low, found.high)]
        return scaled(found._replace(value=mean, low=ends[0], high=ends[1]), scale)
    ends = [None if each is None else min(max(each, low), high) for each in (found.low, found.high)]
    return scaled(found._replace(value=min(max(found.value, low), high), low=ends[0], high=ends[1]), scale)


def _scaled(value: float | None, scale: float) -> float | None:
    """To whole histogram units: a mean of ns has no picoseconds, and a line of intervals.jsonl is a third shorter."""
    return None if value is None else round(value) / scale


Known = Callable[[str], Confidence | None]  # by metric


def unknown(metric: str) -> None:
    """Of a tick, whose values are too few."""


def distributions(series: Series, known: Known = unknown) -> dict[str, Distribution]:
    """All metrics; those without a sample have count 0."""
    found, shown = {}, series.shown()
    for name in METRICS:
        histogram = shown.get(name)
        n_eff = effective_size(name, histogram, series) if histogram else 0
        found[name] = distribution(histogram, scale=SCALES[name], n_eff=n_eff, known=known(name) if histogram else None)
    return found


def failure_distributions(series: Series) -> dict[str, Distribution]:
    return {
        outcome.name.lower(): distribution(histogram, scale=SCALES["e2e_ms"], n_eff=histogram.count)
        for outcome, histogram in sorted(series.failures.items())
    }


def buckets(series: Series) -> dict[str, list[int]]:
    """The classic histograms of BUCKETS, for those metrics that have a sample."""
    shown = series.shown()
    return {
        name: shown[name].below([round(bound * SCALES[name]) for bound in bounds])
        for name, bounds in BUCKETS.items()
        if name in shown
    }


def native_buckets(series: Series) -> dict[str, dict[int, int]]:
    """Of each metric of BUCKETS that has a sample: the filled buckets of its native histogram, by their number.

    Bucket i holds the values in (2**((i - 1) / 2**S), 2**(i / 2**S)], in the base unit, where S is NATIVE_SCHEMA: a
    Prometheus native histogram, and an exponential one of OpenTelemetry with i - 1 for i. Values go by the middle of
    their HDR cell, so one within 0.05 % of a boundary may be counted beside it.
    """
    shown, found = series.shown(), dict[str, dict[int, int]]()
    for name in BUCKETS:
        if (histogram := shown.get(name)) is None:
            continue
        cells = np.flatnonzero(histogram.counts)
        factor = METRICS[name].base_factor / SCALES[name]
        middles = Histogram.middles(cells + histogram.first) * factor
        numbers = np.ceil(np.log2(middles) * 2**NATIVE_SCHEMA).astype(np.int64)  # ascending, as the cells are
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        counts = np.add.reduceat(histogram.counts[cells], starts)
        found[name] = dict(zip(numbers[starts].tolist(), counts.tolist(), strict=True))
    return found


def requests(series: Series, *, planned: int | None = None) -> Requests:
    """The counts by outcome. Without a plan's number, `planned` is what came of the slots."""
    tally = series.tally
    reasons = {reason: int(tally[Tally.UNSENT_REASON + reason]) for reason in Unsent}
    unsent = {UNRECORDED if reason is Unsent.NONE else reason.name.lower(): n for reason, n in reasons.items() if n}
    return Requests(
        planned=series.sent + series.unsent if planned is None else planned,
        sent=series.sent,
        unsent=unsent,
        ok=int(tally[Outcome.OK]),
        failed={outcome.name.lower(): int(tally[outcome]) for outcome in FAILURES if tally[outcome]},
        cancelled=int(tally[Outcome.CANCELLED]),
        in_flight_at_end=int(tally[Outcome.IN_FLIGHT]),
        attempts=int(tally[Tally.ATTEMPTS]),
        tcp_retransmits=int(tally[Tally.RETRANSMITS]) if tally[Tally.RETRANSMITS_KNOWN] else None,
    )


def throughput(series: Series, seconds: float, *, conditions: bool) -> Throughput:
    """Rates over a window. Goodput only where the plan has conditions on each request; its share is of all sent."""
    if seconds <= 0:
        return Throughput()
    tally, used = series.tally, tokens(series)
    output = None if used.output is None else used.output / seconds
    return Throughput(
        requests_per_s=int(tally[Outcome.OK]) / seconds,
        output_tokens_per_s=output,
        total_tokens_per_s=None if output is None or used.input is None else output + used.input / seconds,
        events_per_s=int(tally[Tally.EVENTS]) / seconds,
        goodput_per_s=int(tally[Tally.GOOD]) / seconds if conditions else None,
        goodput_share=share(tally[Tally.GOOD], series.sent) if conditions else None,
    )


def tokens(series: Series) -> Tokens:
    """Sums over ok requests, None where no reply said. `output` falls back to counted events, and then says so."""
    tally = series.tally
    sources = {
        "provider": tally[Tally.BY_PROVIDER],
        "local": tally[Tally.BY_TOKENIZER],
        "events": tally[Tally.BY_EVENTS],
    }
    used = [name for name, count in sources.items() if count]
    return Tokens(
        input=_known(series, Tally.INPUT),
        output=int(tally[Tally.OUTPUT]) if used else None,
        cached=_known(series, Tally.CACHED),
        reasoning=_known(series, Tally.REASONING),
        source=None if not used else used[0] if len(used) == 1 else "mixed",
    )


def _known(series: Series, position: Tally) -> int | None:
    answered = series.tally[position + (Tally.INPUT_KNOWN - Tally.INPUT)]
    return int(series.tally[position]) if answered else None


def cost(series: Series, seconds: float, *, date: str | None) -> Cost:
    """What the requests with a known price cost, and what they would at this mix in a thousand, at this rate in a day."""
    priced, pico = int(series.tally[Tally.PRICED]), int(series.tally[Tally.PICO_USD])
    return Cost(
        usd=pico / PICO_PER_USD if priced else None,
        usd_per_1k_requests=pico * 1000 / priced / PICO_PER_USD if priced else None,
        usd_per_day=pico / PICO_PER_USD * DAY_S / seconds if priced and seconds > 0 else None,
        priced_requests=priced,
        unpriced_requests=int(series.tally[Tally.UNPRICED]),
        price_table_date=date,
    )


def slice_of(
    series: Series,
    seconds: float,
    *,
    conditions: bool,
    date: str | None,
    planned: int | None = None,
    known: Known = unknown,
) -> dict[str, Any]:
    """The fields of a Slice."""
    tally = series.tally
    return {
        "requests": requests(series, planned=planned),
        "throughput": throughput(series, seconds, conditions=conditions),
        "tokens": tokens(series),
        "cost": cost(series, seconds, date=date),
        "metrics": distributions(series, known),
        "failure_e2e_ms": failure_distributions(series),
        "itl_coalesced_share": share(tally[Tally.GAPS_COALESCED], tally[Tally.GAPS]),
        "ttft_coalesced_share": share(tally[Tally.STREAMS_COALESCED], tally[Tally.STREAMS]),
        "connection_reused_share": share(tally[Tally.REUSED], tally[Tally.REUSED] + tally[Tally.OPENED]),
    }


def slice_of_tick(series: Series, seconds: float, *, conditions: bool, date: str | None) -> dict[str, Any]:
    """The fields of a tick's Slice: sent, output tokens, events, ITL and TTFT are of what happened in the tick, requests
    that still run included; everything else is of the requests that ended in it."""
    fields = slice_of(series, seconds, conditions=conditions, date=date)
    tally, used, rates = series.tally, fields["tokens"], fields["throughput"]
    fields["requests"].sent = int(tally[Tally.LIVE_SENT])
    used.output = int(tally[Tally.LIVE_TOKENS])
    rates.output_tokens_per_s = used.output / seconds
    rates.events_per_s = int(tally[Tally.LIVE_EVENTS]) / seconds
    if used.input is not None or not tally[Outcome.OK]:  # a reply that did not say leaves the total unknown
        rates.total_tokens_per_s = (used.output + (used.input or 0)) / seconds
    gaps = fields["metrics"]["itl_ms"].count + int(tally[Tally.LIVE_COALESCED])
    fields["itl_coalesced_share"] = share(tally[Tally.LIVE_COALESCED], gaps)
    return fields


def share(part: int, total: int) -> float | None:
    return int(part) / int(total) if total else None


def window_ns(phase: Phase, times: PhaseTimes, series: Series, *, now_ns: int, stopped: bool) -> int:
    """The window of a phase's rates. Closed loop: phase start to last end. Open loop: the issue window, or the span of
    the ends where that is longer, so that neither a late drain nor a short burst flatters the rate.

    `stopped`: the run was ended early, so that the planned issue window is not what was issued.
    """
    if not times.start_ns:
        return 0
    last_end = int(series.tally[Tally.LAST_END])
    if not model_of(phase.load).is_open:
        return max(0, (last_end or now_ns) - times.start_ns)
    issued = (times.end_ns or now_ns) - times.start_ns
    planned = _issue_window_ns(phase)
    if planned is not None and times.end_ns and not stopped:
        issued = planned
    elif planned is not None:
        issued = min(issued, planned)
    return max(0, issued, last_end - int(series.tally[Tally.FIRST_END]))


def _issue_window_ns(phase: Phase) -> int | None:
    """How long the plan issues for: the phase's duration, or its requests over a constant rate; the shorter of both."""
    rate = phase.load.shapes[0].start if len(phase.load.shapes) == 1 else 0.0
    flat = rate > 0 and phase.load.shapes[0].end == rate
    counted = phase.requests / rate * SECOND if phase.requests and flat and model_of(phase.load).has_level else None
    known = [each for each in (phase.duration_ns, counted) if each is not None]
    return round(min(known)) if known else None


def mean_interval_ns(phases: Mapping[int, Phase], windows: Mapping[int, int], slots: Mapping[int, int]) -> float | None:
    """The mean time between the slots of the measured open-loop phases, the shortest of them; None without any."""
    means = [windows[i] / slots[i] for i, phase in phases.items() if model_of(phase.load).is_open and slots.get(i)]
    return min(means) if means else None
