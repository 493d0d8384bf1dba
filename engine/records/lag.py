"""The loop lag histogram: logarithmic buckets that cost a shift and an addition per read."""

from __future__ import annotations

from typing import Final

LAG_BUCKETS: Final = 640


def lag_bucket(ns: int) -> int:
    """The bucket of a lag: linear below 16 ns, then 16 buckets per octave, at most 6.25 % wide."""
    if ns < 16:
        return ns if ns > 0 else 0
    bits = ns.bit_length()
    bucket = bits - 4 << 4 | ns >> bits - 5 & 15
    return bucket if bucket < LAG_BUCKETS else LAG_BUCKETS - 1


def lag_value(bucket: int) -> int:
    """The highest lag that belongs to a bucket, in ns."""
    if bucket < 16:
        return bucket
    octave, part = bucket >> 4, bucket & 15
    return (16 + part + 1 << octave - 1) - 1
