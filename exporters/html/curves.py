"""Percentile curves of a run's metrics: exact from its HDR histograms, rough from the ticks' bucket counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ...engine.metrics import BUCKETS, SCALES
from ..hdr import read as hdrread
from ..hdr.write import INTERVALS, TOTALS, tag
from .timeline import LATENCIES, Timeline

STEPS_PER_DECADE = 40  # of 1/(1 - p)
STEPS_PER_BUCKET = 16


class Curve(msgspec.Struct, frozen=True):
    """Values `v`, in the metric's unit, at percentiles `p` in [0, 1)."""

    p: list[float]
    v: list[float]


Curves = dict[tuple[str, str], Curve]  # by target and metric


def exact_curves(run_dir: Path, targets: Sequence[str]) -> Curves:
    """From totals.hlog, or from the sums of intervals.hlog where the run has not ended; empty if there is neither."""
    keys = {tag(metric, target): (target, metric) for target in targets for metric in LATENCIES}
    log = next((run_dir / name for name in (TOTALS, INTERVALS) if (run_dir / name).exists()), None)
    curves: Curves = {}
    for each, histogram in hdrread.sums(log, keys).items() if log else ():
        if histogram.count:
            target, metric = keys[each]
            values, counts = hdrread.values_and_counts(histogram)
            curves[target, metric] = spectrum(values / SCALES[metric], counts)
    return curves


def rough_curves(timeline: Timeline, targets: Sequence[str]) -> Curves:
    """From bucket counts. The timeline must have kept those of all LATENCIES."""
    curves: Curves = {}
    for target in targets:
        totals = [span.targets[target] for span in timeline.spans if target in span.targets]
        for metric in LATENCIES:
            counts = [total.buckets[metric] for total in totals if metric in total.buckets]
            if counts and np.any(counts):
                curves[target, metric] = spectrum(*spread(metric, np.sum(counts, axis=0)))
    return curves


def spread(metric: str, counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(values, counts) with each bucket's count spread evenly over the bucket: good enough to draw, not to quote."""
    bounds = [0.0, *BUCKETS[metric], BUCKETS[metric][-1] * 1.5]
    values: list[float] = []
    weights: list[float] = []
    for low, high, n in zip(bounds[:-1], bounds[1:], counts, strict=True):
        steps = min(STEPS_PER_BUCKET, int(n))
        values += [low + (high - low) * (k + 0.5) / steps for k in range(steps)]
        weights += [n / max(1, steps)] * steps
    return np.array(values), np.array(weights)


def spectrum(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64 | np.int64]) -> Curve:
    """The curve of ascending `values`: 1/(1-p) in even steps of its logarithm as far as the sample reaches."""
    running = np.cumsum(counts)
    total = running[-1]
    decades = math.log10(max(total, 2))
    tail = 1 - 10.0 ** -np.linspace(0, decades, max(16, int(decades * STEPS_PER_DECADE)))
    p = np.unique(np.concatenate((np.linspace(0, 0.02, 21), np.linspace(0.02, 0.9, 89), tail)))
    rank = np.maximum(1, np.floor(p * total + 0.5))  # as HdrHistogram counts percentiles
    position = np.searchsorted(running, rank - 1e-9).clip(0, len(values) - 1)
    return Curve([float(f"{x:.9g}") for x in p], [float(f"{x:.4g}") for x in values[position]])
