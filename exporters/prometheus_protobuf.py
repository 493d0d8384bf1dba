"""Prometheus' protobuf exposition, the only one with native histograms: length-delimited MetricFamily messages. Pure.

Fields are those of io/prometheus/client/metrics.proto (https://github.com/prometheus/client_model), written in the wire
format of https://protobuf.dev/programming-guides/encoding/. prometheus_client has no encoder for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from ..engine.metrics import NATIVE_SCHEMA

_MESSAGE: Final = "io.prometheus.client.MetricFamily"
_MIME: Final = "application/vnd.google.protobuf"
CONTENT_TYPE: Final = f"{_MIME}; proto={_MESSAGE}; encoding=delimited"
_TYPES: Final = {"counter": 0, "gauge": 1, "histogram": 4}
_ZERO_THRESHOLD: Final = 2.0**-128  # as other clients have it. No bucket lies below: what is 0 is counted as 1 us
_MAX_GAP: Final = 2  # empty buckets that are cheaper to write than a new span

# By a family's name and the values of its labels, the filled buckets: their number (collectors.statistics) and count.
Native = dict[str, dict[tuple[str, ...], Mapping[int, int]]]


def is_preferred(accept: Iterable[str]) -> bool:
    """Whether these Accept headers want protobuf at least as much as any text format (RFC 9110, section 12.5.1)."""
    protobuf = text = 0.0
    for media_range in ",".join(accept).split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        given = dict(parameter.replace(" ", "").partition("=")[::2] for parameter in parameters)
        weight = _weight(given.get("q", "1"))
        if name.lower() == _MIME:
            if given.get("proto", _MESSAGE) == _MESSAGE and given.get("encoding", "delimited") == "delimited":
                protobuf = max(protobuf, weight)
        else:
            text = max(text, weight)
    return protobuf > 0 and protobuf >= text


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def encoded(families: Iterable[Metric], native: Native) -> bytes:
    """The families, with the native histograms of those that `native` names. Raises KeyError for a type it has not."""
    return b"".join(_delimited(_family(family, native.get(family.name, {}))) for family in families)


def _family(family: Metric, native: Mapping[tuple[str, ...], Mapping[int, int]]) -> bytes:
    # A counter has the name of its samples here, as in the text format.
    name = family.samples[0].name if family.type == "counter" else family.name
    head = _text(1, name) + _text(2, family.documentation) + _uint(3, _TYPES[family.type])
    if family.type == "histogram":
        metrics = list(_histograms(family.samples, native))
    else:
        field = 3 if family.type == "counter" else 2
        metrics = [_labels(each.labels) + _bytes(field, _double(1, each.value)) for each in family.samples]
    return head + b"".join(_bytes(4, metric) for metric in metrics)


def _histograms(samples: Iterable[Sample], native: Mapping[tuple[str, ...], Mapping[int, int]]) -> Iterator[bytes]:
    """One Metric for the samples of each set of labels: buckets by ascending bound, then count, then sum."""
    buckets = b""
    count = 0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            buckets += _bytes(3, _uint(1, int(sample.value)) + _double(2, bound)) if bound != float("inf") else b""
        elif sample.name.endswith("_count"):
            count = int(sample.value)
        else:
            histogram = _uint(1, count) + _double(2, sample.value) + buckets
            filled = native.get(tuple(sample.labels.values()), {})
            # A count that differs from that of the buckets is refused by Prometheus: a part of the ticks had none.
            if filled and sum(filled.values()) == count:
                histogram += _native(filled)
            yield _labels(sample.labels) + _bytes(7, histogram)
            buckets = b""


def _native(filled: Mapping[int, int]) -> bytes:
    """Spans of buckets next to each other, and of each bucket the difference of its count to that of the one before."""
    numbers = sorted(filled)
    spans: list[tuple[int, int]] = []  # distance to the end of the last one, length
    deltas: list[int] = []
    end = before = 0
    for number in numbers:
        if not spans or number - end > _MAX_GAP:
            spans.append((number - end, 0))
            end = number
        for each in range(end, number + 1):
            now = filled.get(each, 0)
            deltas.append(now - before)
            before = now
        spans[-1] = spans[-1][0], spans[-1][1] + number + 1 - end
        end = number + 1
    return (
        _sint(5, NATIVE_SCHEMA)
        + _double(6, _ZERO_THRESHOLD)
        + _uint(7, 0)
        + b"".join(_bytes(12, _sint(1, offset) + _uint(2, length)) for offset, length in spans)
        + b"".join(_sint(13, delta) for delta in deltas)
    )


def _labels(labels: Mapping[str, str]) -> bytes:
    return b"".join(_bytes(1, _text(1, name) + _text(2, value)) for name, value in labels.items() if name != "le")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _uint(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _sint(field: int, value: int) -> bytes:
    return _uint(field, value << 1 if value >= 0 else (-value << 1) - 1)  # ZigZag


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _delimited(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message
