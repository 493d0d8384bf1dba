"""Throughput per GPU, and what a token costs in USD and joules. Pure."""

from __future__ import annotations

from typing import Final

from ..engine.plan.plan import Gpus
from .snapshot import GpuReport, Throughput

HOUR_S: Final = 3600.0
MILLION: Final = 1e6


def gpus_of(gpus: Gpus | None, throughput: Throughput, *, measured_watts: float | None = None) -> GpuReport | None:
    """The figures of a run; None without `gpus` in its plan.

    `measured_watts` of all GPUs together are what a DCGM page said; the plan's own figure wins. All time of the GPUs is
    charged to the tokens that were made in it: that is what a server at this load costs.
    """
    if gpus is None:
        return None
    watts = measured_watts if gpus.watts is None else gpus.watts * gpus.count
    usd_per_s = None if gpus.usd_per_hour is None else gpus.usd_per_hour * gpus.count / HOUR_S
    output, total = throughput.output_tokens_per_s, throughput.total_tokens_per_s
    return GpuReport(
        count=gpus.count,
        requests_per_s=_over(throughput.requests_per_s, gpus.count),
        output_tokens_per_s=_over(output, gpus.count),
        total_tokens_per_s=_over(total, gpus.count),
        usd_per_million_output_tokens=_over(usd_per_s, output, MILLION),
        usd_per_million_total_tokens=_over(usd_per_s, total, MILLION),
        watts=watts,
        joules_per_output_token=_over(watts, output),
    )


def _over(part: float | None, total: float | None, scale: float = 1.0) -> float | None:
    return part * scale / total if part is not None and total else None
