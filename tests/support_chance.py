"""Goodness of fit against a distribution that is fully known: Kolmogorov-Smirnov and Anderson-Darling at 1 %."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import erf, exp, factorial, log, sqrt

KS_1_PERCENT = 1.628  # of D * (sqrt(n) + 0.12 + 0.11 / sqrt(n)), Stephens 1974
AD_1_PERCENT = 3.857  # of A squared, Anderson and Darling 1954


def kolmogorov_smirnov(uniforms: Iterable[float]) -> float:
    """How far the values are from uniform on 0..1, as a share of what 1 in 100 uniform samples exceeds."""
    values = sorted(uniforms)
    n = len(values)
    distance = max(max((i + 1) / n - u, u - i / n) for i, u in enumerate(values))
    return distance * (sqrt(n) + 0.12 + 0.11 / sqrt(n)) / KS_1_PERCENT


def anderson_darling(uniforms: Iterable[float]) -> float:
    """The same, with weight on both tails."""
    values = [min(max(u, 1e-15), 1 - 1e-15) for u in sorted(uniforms)]
    n = len(values)
    total = sum((2 * i + 1) * (log(u) + log(1 - values[n - 1 - i])) for i, u in enumerate(values))
    return (-n - total / n) / AD_1_PERCENT


def gap_cdf(shape: float) -> Callable[[float], float]:
    """The distribution of Gamma(shape)/shape, for shape 1/2 and integers."""
    if shape == 0.5:
        return lambda x: erf(sqrt(x / 2))
    k = int(shape)
    assert k == shape
    return lambda x: 1 - exp(-k * x) * sum((k * x) ** j / factorial(j) for j in range(k))
