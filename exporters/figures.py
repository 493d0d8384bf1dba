"""How numbers look where people read them: one spelling for console and HTML report. Pure, no layout."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from ..collectors.snapshot import Distribution, HostReport, Requests, Slo
from ..engine.metrics import METRICS
from ..engine.plan.slo import is_per_request

MISSING: Final = "–"
TOO_SMALL: Final = "n/a (n too small)"
BARS: Final = " ▁▂▃▄▅▆▇█"

HEADLINE: Final = ("ttft_ms", "itl_ms", "e2e_ms")  # shown first and in bold

SLO_STATES: Final = ("PASS", "FAIL", "UNDECIDED")


def label(metric: str) -> str:
    """`TTFT ms`: a metric's name and unit for a row."""
    return f"{METRICS[metric].label} {METRICS[metric].unit}"


def value(number: float | None, metric: str = "x_ms") -> str:
    """A metric's value with about four significant digits; money gets as many decimals as a cheap request needs."""
    if number is None:
        return MISSING
    if metric == "cost_usd":
        return money(number, sign="")
    size = abs(number)
    if size >= 1000:
        return f"{number:,.0f}"
    if size >= 100:
        return f"{number:.1f}"
    if size >= 1:
        return f"{number:.2f}"
    return f"{number:.3f}"


def objective(slo: Slo) -> str:
    """The measured value of an objective; for an objective on each request, the share of the requests that met it."""
    if slo.value is None:
        return MISSING
    if is_per_request(slo.expression):
        return share(slo.value)
    return value(slo.value) if abs(slo.value) >= 1 else f"{slo.value:.4g}"


def objective_interval(slo: Slo) -> str:
    """What an objective was judged by, `[48.1, 51.0]`; empty where it is a fact of the run."""
    if is_per_request(slo.expression) and slo.ci95:
        return ", ".join(share(each) for each in slo.ci95 if each is not None)
    return bounds(slo.ci95)


def needs(slo: Slo) -> str:
    """What an undecided objective still needs, `needs 1,980 more requests (40 s)`; empty where nothing is known of it."""
    if slo.needs_requests is None:
        return ""
    return f"needs {count(slo.needs_requests)} more requests" + (f" ({clock(slo.needs_s)})" if slo.needs_s else "")


def moment(iso: str) -> str:
    """`2026-11-23 09:10:12 UTC`: an ISO 8601 time to the second; any other text unchanged."""
    try:
        return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return iso


def money(usd: float | None, sign: str = "$") -> str:
    if usd is None:
        return MISSING
    if abs(usd) >= 100:
        return f"{sign}{usd:,.2f}"
    return f"{sign}{usd:.4f}" if abs(usd) >= 0.01 or usd == 0 else f"{sign}{usd:.3g}"


def count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"


def rate(number: float | None) -> str:
    if number is None:
        return MISSING
    return f"{number:,.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def share(number: float | None) -> str:
    if number is None:
        return MISSING
    percent = number * 100
    if percent == 0 or percent >= 99.995:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def clock(seconds: float) -> str:
    """A duration: `42 s`, `3:07`, `2:15:00`, `3 d 04:00`."""
    rounded = max(0, round(seconds))
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def p99_9(distribution: Distribution, metric: str) -> str:
    """The 99.9th percentile, or why there is none."""
    if distribution.p99_9 is None:
        return TOO_SMALL if distribution.count else MISSING
    return value(distribution.p99_9, metric)


def interval(distribution: Distribution, level: str, metric: str) -> str:
    """The 95 % interval of a percentile or mean, `[48.1, 51.0]`; empty if there is none."""
    return bounds(getattr(distribution.ci95, level), metric) if distribution.ci95 else ""


def bounds(found: tuple[float | None, float | None] | None, metric: str = "x_ms") -> str:
    """An interval, `[50.4, inf)` where it has no end; empty if it has none at all."""
    low, high = found or (None, None)
    if low is None and high is None:
        return ""
    return f"{f'[{value(low, metric)}' if low is not None else '[0'}, " + (
        f"{value(high, metric)}]" if high is not None else "inf)"
    )


def failed(requests: Requests) -> int:
    return sum(requests.failed.values())


def parts(counts: dict[str, int]) -> str:
    """`http_rate_limited 12, timeout_total 3`: the non-zero ones, largest first."""
    ordered = sorted(((n, name) for name, n in counts.items() if n), key=lambda pair: (-pair[0], pair[1]))
    return ", ".join(f"{name} {n:,}" for n, name in ordered)


def spark(values: Sequence[float | None], width: int) -> str:
    """The last `width` values as bars between their own least and greatest; a gap where there is none."""
    tail = list(values)[-width:]
    known = [v for v in tail if v is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = (high - low) / 7 or 1.0
    return "".join(" " if v is None else BARS[1 + min(7, int((v - low) / step))] for v in tail)


def histogram(counts: Sequence[int]) -> str:
    """A distribution's shape: each bucket's share of the fullest one, empty ends cut; any count is at least ▁."""
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        return ""
    middle = counts[filled[0] : filled[-1] + 1]
    top = max(middle)
    return "".join(BARS[0] if n == 0 else BARS[max(1, round(8 * n / top))] for n in middle)


HOST_COLUMNS: Final = ("state", "workers", "sent", "ok", "failed", "TTFT p50", "TTFT p99", "clock ±us", "start +us")


def host_cells(host: HostReport) -> list[str]:
    """One load host's row below HOST_COLUMNS."""
    return [
        host.state,
        count(host.workers),
        count(host.requests.sent),
        count(host.requests.ok),
        count(failed(host.requests)),
        value(host.ttft_ms.p50),
        value(host.ttft_ms.p99),
        MISSING if host.clock_bound_us is None else f"{host.clock_bound_us:,.0f}",
        MISSING if host.start_skew_us is None else f"{host.start_skew_us:,.0f}",
    ]
