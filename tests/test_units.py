"""Numbers with units, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.plan.units import BYTES, NS, duration_ns, rate_per_s, size_bytes

S = 10**9
DURATIONS: list[tuple[str | float, int]] = [
    ("1ns", 1),
    ("250us", 250_000),
    ("250ms", 250_000_000),
    ("10s", 10 * S),
    ("5m", 300 * S),
    ("2h", 7200 * S),
    ("7d", 7 * 86_400 * S),
    ("1m30s", 90 * S),
    ("1h 30m", 5400 * S),
    (" 1.5 s ", 1_500_000_000),
    (".5s", 500_000_000),
    ("1e3ms", S),
    ("1e-9s", 1),
    ("90", 90 * S),
    (90, 90 * S),
    (0.25, 250_000_000),
    (0, 0),
    ("0s", 0),
    ("0.1s", 100_000_000),
    ("0.000000001s", 1),
    ("0.0000000001s", 0),
    (-5, -5 * S),
]
SIZES: list[tuple[str | int, int]] = [
    (4096, 4096),
    ("4096", 4096),
    ("100B", 100),
    ("1kB", 1000),
    ("1KiB", 1024),
    ("100MB", 100_000_000),
    ("1GiB", 1 << 30),
    ("1.5 GiB", 3 << 29),
    ("2TB", 2 * 10**12),
    ("1tib", 1 << 40),
]
RATES: list[tuple[str | float, float]] = [
    (50, 50.0),
    (0.5, 0.5),
    ("50", 50.0),
    ("50/s", 50.0),
    ("600/m", 10.0),
    ("600/min", 10.0),
    ("3600/h", 1.0),
    ("1e3/s", 1000.0),
    ("0.1/s", 0.1),
    ("-5/s", -5.0),
]
NO_DURATIONS = [
    "",
    "s",
    "10 parsecs",
    "10s 5",
    "1:30",
    "-5s",
    "1..5s",
    "10S",
    "1 0s",
    "nan",
    "inf",
    "1e9999s",
    "\u0661s",
    True,
]
NO_SIZES = ["", "GB", "1 GX", "-1", "1/s", "1.2.3MB", "nan", True]
NO_RATES = ["", "/s", "50/d", "50 per s", "--5/s", "5s", "nan", "inf", True]


@pytest.mark.parametrize(("text", "ns"), DURATIONS)
def test_a_duration_in_ns(text: str | float, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_in_bytes(text: str | int, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(("text", "rate"), RATES)
def test_a_rate_per_second(text: str | float, rate: float) -> None:
    assert rate_per_s(text) == rate


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is a number with a unit"):
        duration_ns(text)


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="a size is a number with a unit"):
        size_bytes(text)


@pytest.mark.parametrize("text", NO_RATES)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="a rate is a number per second"):
        rate_per_s(text)


numbers = st.decimals(0, 10**6, places=4, allow_nan=False).map(lambda number: format(number, "f"))


@given(numbers, st.sampled_from(sorted(NS)))
def test_a_duration_is_exact_down_to_the_nanosecond(number: str, unit: str) -> None:
    assert duration_ns(number + unit) == int(Fraction(number) * NS[unit])


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(sorted(NS))), min_size=1, max_size=4))
def test_parts_of_a_duration_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert duration_ns(text) == sum(duration_ns(f"{number}{unit}") for number, unit in parts)


@given(numbers, st.sampled_from(sorted(BYTES)), st.booleans())
def test_a_size_is_exact(number: str, unit: str, upper: bool) -> None:
    assert size_bytes(number + (unit.upper() if upper else unit)) == int(Fraction(number) * BYTES[unit])


@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for convert in (duration_ns, size_bytes, rate_per_s):
        try:
            value = convert(text)
        except ValueError:
            continue
        assert abs(value) < 10**1100
