"""The account of a run in words: what became of every request, token and cent, and the state of the client itself.

The console and the HTML report print these lines. Pure, no layout, imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..collectors.bounds import TOKENS_PER_EVENT_BOUND
from ..collectors.snapshot import Client, Cost, GpuReport, Report, Requests, SteadySlice, Throughput, Tokens
from ..engine.metrics import CLIENT, CLIENT_COUNTERS
from . import figures

DRIFT_FROM_S: Final = 600.0  # of a shorter run that is steady a change per hour says nothing


def account_lines(report: Report) -> list[tuple[str, str]]:
    """The totals of a run as (name, text); the name is empty where a line continues the one before it."""
    t = report.throughput
    lines = [
        ("requests", _planned(report.requests)),
        ("", _sent(report.requests)),
        ("throughput", _rates(t)),
    ]
    if t.goodput_share is not None:
        goodput = f"{figures.share(t.goodput_share)} met every request SLO, {figures.rate(t.goodput_per_s)}/s"
        lines.append(("goodput", goodput))
    lines.append(("tokens", _tokens(report.tokens)))
    per_event = report.replies.tokens_per_event if report.replies is not None else None
    if per_event is not None and per_event > TOKENS_PER_EVENT_BOUND:
        lines.append(("", f"{per_event:.2f} tokens an event: ITL is the time between events, TPOT the time per token"))
    lines += [("cost", _cost(report.cost))]
    if report.gpus is not None:
        lines.append(("GPUs", _gpus(report.gpus)))
    if report.steady is not None and report.steady.from_s is not None and report.steady.to_s is not None:
        lines.append(("steady part", _steady(report.steady, report.steady.from_s, report.steady.to_s)))
    lines += [("" if i else "client", line) for i, line in enumerate(_client(report.client))]
    point = report.verdict.error_budget.get("calibration")
    return [*lines, ("calibrated", _calibrated(point))] if point else lines


def _calibrated(point: Mapping[str, Any]) -> str:
    """How accurate this host was found to measure, at the calibrated load nearest to the run's."""
    load = f"{point['streams']:,} streams, {point['events_per_s']:,.0f} events/s, {point['transport']}"
    if point["client_stalls"]:
        load += ", worker stalled"
    errors = [
        (name, point[f"{key}_error_us"]) for name, key in (("arrival", "arrival"), ("TTFT", "ttft"), ("ITL", "itl"))
    ]
    known = [
        f"{name} p50 {each['p50']:.1f} p99 {each['p99']:.1f} us" for name, each in errors if each["p99"] is not None
    ]
    return f"error of {', '.join(known) or 'nothing known'} ({load})"


def _steady(s: SteadySlice, from_s: float, to_s: float) -> str:
    """The stationary window, its p99 and what drifts in it."""
    words = [f"{s.state.replace('_', ' ')}, {figures.clock(from_s)} to {figures.clock(to_s)}, {s.requests.ok:,} ok"]
    ttft = s.metrics.get("ttft_ms")
    if ttft is not None and ttft.count:
        words.append(f"TTFT p99 {figures.value(ttft.p99)} ms {figures.interval(ttft, 'p99', 'ttft_ms')}".rstrip())
    if s.state == "drifting" or to_s - from_s >= DRIFT_FROM_S:
        words += [
            f"{metric} {each.per_h:+.3g} per hour [{each.ci95[0]:.3g}, {each.ci95[1]:.3g}]"
            for metric, each in s.drift.items()
        ]
    return "; ".join(words)


def _planned(q: Requests) -> str:
    unsent = sum(q.unsent.values())
    reasons = f" ({figures.parts(q.unsent)})" if unsent else ""
    return f"{q.planned:,} planned = {q.sent:,} sent + {unsent:,} not sent{reasons}"


def _sent(q: Requests) -> str:
    failed = figures.failed(q)
    outcomes = f" ({figures.parts(q.failed)})" if failed else ""
    line = f"{q.sent:,} sent = {q.ok:,} ok + {failed:,} failed{outcomes} + {q.cancelled:,} cancelled"
    line += f" + {q.in_flight_at_end:,} in flight at the end"
    return line + (f"; {q.attempts:,} attempts" if q.attempts > q.sent else "")


def _rates(t: Throughput) -> str:
    rates = [
        f"{figures.rate(t.requests_per_s)} requests/s",
        f"{figures.rate(t.output_tokens_per_s)} output tokens/s",
        f"{figures.rate(t.total_tokens_per_s)} total tokens/s",
    ]
    return ", ".join(rates)


def _tokens(t: Tokens) -> str:
    if t.output is None and t.input is None:
        return "not reported by the provider"
    line = f"{figures.count(t.input)} in, {figures.count(t.output)} out"
    if t.cached:
        line += f", {t.cached:,} of the input cached"
    if t.reasoning:
        line += f", {t.reasoning:,} of the output reasoning"
    return line + (f" (counted by: {t.source})" if t.source else "")


def _cost(c: Cost) -> str:
    if c.usd is None:
        return f"unknown: no price for {c.unpriced_requests:,} requests" if c.unpriced_requests else "unknown"
    line = f"{figures.money(c.usd)}, {figures.money(c.usd_per_1k_requests)} per 1k requests"
    if c.usd_per_day is not None:
        line += f", {figures.money(c.usd_per_day)} per day at this rate"
    if c.unpriced_requests:
        line += f" for {c.priced_requests:,} requests, {c.unpriced_requests:,} more have no known price"
    return line + (f" (prices of {c.price_table_date})" if c.price_table_date else "")


def _gpus(g: GpuReport) -> str:
    words = [f"{g.count:,}", f"{figures.rate(g.output_tokens_per_s)} output tokens/s of each"]
    if g.usd_per_million_output_tokens is not None:
        words.append(f"{figures.money(g.usd_per_million_output_tokens)} per million output tokens")
    if g.joules_per_output_token is not None:
        words.append(f"{figures.value(g.joules_per_output_token)} J per output token")
    return ", ".join(words)


STAMPS: Final = {"segment": "a stamp per segment", "read": "a stamp per read", "mixed": "segments partly stamped"}


def _client(c: Client) -> list[str]:
    lag = c.loop_lag_us
    stamps = f"{c.workers} worker{'s' * (c.workers != 1)}, {c.clock} clock, {STAMPS.get(c.stamps, c.stamps)}"
    if lag.p50 is not None:
        stamps += (
            f", loop lag p50 {figures.value(lag.p50)} p99 {figures.value(lag.p99)} max {figures.value(lag.max)} us"
        )
    stamps += f", {c.ring_drops:,} ring drops"
    load = [f"CPU {figures.share(c.cpu_utilisation)} of the busiest core"]
    if c.cpu_us_per_event is not None:
        load.append(f"{c.cpu_us_per_event:.1f} us per event")
    load.append(f"steal {figures.share(c.steal_share)}")
    if c.rss_mb_max is not None:
        load.append(f"{c.rss_mb_max:.0f} MB")
    if c.run_queue_wait_share is not None:
        load.append(f"{figures.share(c.run_queue_wait_share)} of the time waiting for a CPU")
    if c.itl_coalesced_share is not None:
        load.append(f"{figures.share(c.itl_coalesced_share)} of gaps coalesced")
    if c.ttft_coalesced_share:
        load.append(f"{figures.share(c.ttft_coalesced_share)} of first tokens coalesced")
    others = [(CLIENT[name].label, getattr(c, name)) for name in CLIENT_COUNTERS if name != "ring_drops"]
    incidents = ", ".join(f"{n:,} {label}" for label, n in others if n)  # 0 in an undisturbed run
    limits = f"limited in {figures.share(c.limited_share)} of the ticks ({figures.parts(c.limited_by)})"
    return [stamps, ", ".join(load), *([limits] if c.limited_by else []), *([incidents] if incidents else [])]
