"""A run in three sentences: how soon the first token comes, how fast tokens flow, how sure that is. Pure."""

from __future__ import annotations

from ..collectors.snapshot import Distribution, Report
from . import figures


def answer(report: Report) -> list[str]:
    """The three sentences of a run that had at least one successful request."""
    return [_first_token(report), _flow(report), _certainty(report)]


def _metric(report: Report, name: str) -> Distribution:
    return report.metrics.get(name, Distribution())


def _first_token(report: Report) -> str:
    ttft = _metric(report, "ttft_ms")
    if not ttft.count:
        e2e = _metric(report, "e2e_ms")
        return f"The replies were not streamed, so that there is no first token; half of them took {_time(e2e.p50)} or less."
    return (
        f"The first token comes after {_time(ttft.p50)} (median; 19 of 20 requests have it within {_time(ttft.p95)})."
    )


def _flow(report: Report) -> str:
    decode, gaps = _metric(report, "decode_tps"), _metric(report, "itl_ms")
    together = f"{figures.rate(report.throughput.output_tokens_per_s)} output tokens/s over all streams together"
    if not decode.count:
        return f"Tokens arrive in bursts or all at once, so that a stream has no pace of its own; the server made {together}."
    pace = f"Then tokens flow at {figures.rate(decode.p50)} per second in each stream"
    if gaps.count:
        pace += f", one event every {_time(gaps.p50)} with pauses of up to {_time(gaps.max)}"
    return f"{pace}; the server made {together}."


def _certainty(report: Report) -> str:
    """From how many replies, the interval of the median, and the one thing that limits most what this can be used for."""
    requests, state = report.requests, report.verdict.state
    text = f"This is from {requests.ok:,} replies in {figures.clock(report.run.duration_s)}"
    if failed := figures.failed(requests):
        text += f" ({failed:,} more failed: {figures.parts(requests.failed)})"
    ttft = _metric(report, "ttft_ms")
    known = figures.interval(ttft, "p50", "ttft_ms")
    if known:
        text += f"; the median first token lies in {known} ms with 95 % certainty"
    reasons = [reason for reason in report.verdict.reasons if not reason.note]
    if state == "INVALID":
        return f"{text}, but do not use these numbers (lens doctor says what to do): {reasons[0].detail if reasons else state}."
    if state == "INSUFFICIENT":
        return f"{text}, which is too few to rely on: measure longer."
    upper = ttft.ci95.p99[1] if ttft.ci95 else None
    if ttft.count and upper is None:
        return f"{text}; a p99 needs more requests: measure longer."
    return f"{text}, and this client was not what limited it."


def _time(ms: float | None) -> str:
    """`412 ms`, `1.84 s`."""
    if ms is not None and ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{figures.value(ms)} ms"
