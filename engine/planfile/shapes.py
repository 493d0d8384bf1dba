"""The load of a phase: closed, open, partly open or replayed, and its value over time."""

from __future__ import annotations

from typing import Any, Final

from ..plan.plan import SECOND, Load, Shape, Workload
from .document import Field, Node, fields_of, keys_of
from .schema import WAYS, CourseKeys, LoadKeys, SpikeKeys

DEFAULT_CONCURRENCY: Final = 8
STEPS_MAX: Final = 10_000
GAMMA_MIN: Final = 0.01  # below, nearly all requests come in one burst and one gap is longer than any run
GAMMA_MAX: Final = 1e6

_FIELDS: Final = {field.key: field for field in fields_of(LoadKeys)}


def load_of(node: Node, duration: int | None, workload: Workload) -> Load:
    """The load that `node` describes, over `duration` ns. Raises PlanError."""
    if not node.given:
        if workload.kind == "trace":
            return Load(model="replay", shapes=(flat(0, duration or 0),))
        return Load(model="closed", shapes=(flat(DEFAULT_CONCURRENCY, duration or 0),))
    node.mapping(keys_of(LoadKeys), "a mapping with concurrency, rate or replay")
    kinds = [key for key in ("concurrency", "rate", "replay") if node.child(key).given]
    if len(kinds) > 1:
        raise node.fail(f"has {' and '.join(kinds)}, one of them is wanted")
    if kinds == ["concurrency"]:
        return _closed(node, duration)
    first = next(iter(node.value), None)
    if not kinds and first is not None:
        raise node.child(first).fail("needs rate, concurrency or replay beside it")
    if not kinds:
        raise node.fail("needs concurrency, rate or replay")
    if node.child("stagger").given:
        raise node.child("stagger").fail("is for closed loop (concurrency)")
    cap = _cap(node)
    if kinds == ["replay"]:
        if not node.child("replay").flag():
            raise node.child("replay").fail("must be true, or left out")
        if workload.kind != "trace":
            raise node.child("replay").fail("needs a workload with timestamps: workload.trace")
        return Load(model="replay", shapes=(flat(0, duration or 0),), **cap)
    arrivals, shape = _arrivals(node.child("arrivals"))
    return Load(
        model="partly_open" if workload.kind == "sessions" else "open",
        shapes=_shapes(node.child("rate"), duration, _FIELDS["rate"]),
        arrivals=arrivals,
        gamma_shape=shape,
        **cap,
    )


def flat(value: float, duration: int) -> Shape:
    return Shape(duration_ns=duration, start=value, end=value)


def _closed(node: Node, duration: int | None) -> Load:
    for key in ("arrivals", "max_in_flight", "overflow"):
        if node.child(key).given:
            raise node.child(key).fail("is for open loop (rate); closed loop (concurrency) has no arrivals")
    stagger = node.child("stagger")
    return Load(
        model="closed",
        shapes=_shapes(node.child("concurrency"), duration, _FIELDS["concurrency"]),
        stagger_ns=stagger.read(_FIELDS["stagger"]) if stagger.given else 0,
    )


def _cap(node: Node) -> dict[str, Any]:
    """max_in_flight and overflow, as arguments of Load."""
    cap, overflow = node.child("max_in_flight"), node.child("overflow")
    if overflow.given and not cap.given:
        raise overflow.fail("says what happens beyond max_in_flight, which is missing")
    found = {"max_in_flight": cap.read(_FIELDS["max_in_flight"])} if cap.given else {}
    return found | ({"overflow": overflow.read(_FIELDS["overflow"])} if overflow.given else {})


def _arrivals(node: Node) -> tuple[Any, float]:
    if not node.given:
        return "constant", 1.0
    kind, colon, shape = node.text().partition(":")
    if kind not in ("constant", "poisson", "gamma") or bool(colon) != (kind == "gamma"):
        raise node.fail("must be constant, poisson or gamma:SHAPE, such as gamma:0.5")
    try:
        value = float(shape) if colon else 1.0
    except ValueError as error:
        raise node.fail("must be gamma:SHAPE with a number > 0") from error
    if not value > 0:
        raise node.fail("must be gamma:SHAPE with a number > 0")
    if not GAMMA_MIN <= value <= GAMMA_MAX:
        raise node.fail(f"must be gamma:SHAPE with {GAMMA_MIN:g} <= SHAPE <= {GAMMA_MAX:g}")
    return kind, value


def _shapes(node: Node, duration: int | None, field: Field) -> tuple[Shape, ...]:
    """A value over time: a number, {from, to, curve}, {steps} or {base, spike}."""
    if not isinstance(node.value, dict):
        return (flat(_level(node, field, zero=False), duration or 0),)
    node.mapping(keys_of(CourseKeys))
    ways = [keys for keys in WAYS if any(node.child(key).given for key in keys)]
    if len(ways) > 1:
        raise node.fail("needs from and to, or steps, or base and spike")
    if node.child("steps").given:
        return _steps(node.child("steps"), duration, field)
    if duration is None:
        raise node.fail("changes over time: the phase needs a duration")
    if node.child("base").given and node.child("spike").given:
        return _spike(node, duration, field)
    if not (node.child("from").given and node.child("to").given):
        raise node.fail("needs from and to, steps, or base and spike")
    start, end = _level(node.child("from"), field, zero=True), _level(node.child("to"), field, zero=True)
    curve: Any = node.child("curve").choice(["linear", "exponential"]) if node.child("curve").given else "linear"
    if curve == "exponential" and not (start > 0 and end > 0):
        raise node.fail("cannot grow exponentially from or to 0")
    if not start and not end:
        raise node.fail("is 0 from beginning to end")
    return (Shape(duration_ns=duration, start=start, end=end, curve=curve),)


def _steps(node: Node, duration: int | None, field: Field) -> tuple[Shape, ...]:
    steps = node.items()
    if not steps:
        raise node.fail("must not be empty")
    if len(steps) > STEPS_MAX:
        raise node.fail(f"must be at most {STEPS_MAX:,}")
    timed = all(isinstance(step.value, list) for step in steps)
    shapes = _timed(node, steps, duration, field) if timed else _even(node, steps, duration, field)
    if not any(shape.start for shape in shapes):
        raise node.fail("are 0 from beginning to end")
    return shapes


def _timed(node: Node, steps: list[Node], duration: int | None, field: Field) -> tuple[Shape, ...]:
    """Steps with durations of their own."""
    shapes: list[Shape] = []
    for step in steps:
        pair = step.items()
        if len(pair) != 2:
            raise step.fail("must be [value, duration]")
        shapes.append(flat(_level(pair[0], field, zero=True), pair[1].duration(above=0)))
    total = sum(shape.duration_ns for shape in shapes)
    if duration is not None and duration != total:
        raise node.fail(f"last {total / SECOND:g} s together, the phase {duration / SECOND:g} s")
    return tuple(shapes)


def _even(node: Node, steps: list[Node], duration: int | None, field: Field) -> tuple[Shape, ...]:
    """Steps that share the phase's duration; they end on integer ns and together fill it exactly."""
    if duration is None:
        raise node.fail("without durations of their own need a phase with a duration")
    if len(steps) > duration:
        raise node.fail("are more than the phase has ns")
    ends = [duration * (i + 1) // len(steps) for i in range(len(steps))]
    spans = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return tuple(flat(_level(step, field, zero=True), span) for step, span in zip(steps, spans, strict=True))


def _spike(node: Node, duration: int, field: Field) -> tuple[Shape, ...]:
    base = _level(node.child("base"), field, zero=True)
    keys = keys_of(SpikeKeys)
    spike = node.child("spike").mapping(keys, "a mapping with to, at and for")
    for key in keys:
        if not spike.child(key).given:
            raise spike.fail(f"needs {key}")
    at, length = spike.child("at").duration(low=0), spike.child("for").duration(above=0)
    rest = duration - at - length
    if rest < 0:
        raise spike.fail(f"ends after the phase, which lasts {duration / SECOND:g} s")
    parts = [flat(base, at), flat(_level(spike.child("to"), field, zero=False), length), flat(base, rest)]
    return tuple(part for part in parts if part.duration_ns)


def _level(node: Node, field: Field, *, zero: bool) -> float:
    """One value of a load: a number of requests in flight, or a rate."""
    high = field.high or 0
    if field.key == "concurrency":
        return node.integer(low=0 if zero else 1, high=int(high))
    return node.rate(low=0, high=high) if zero else node.rate(above=0, high=high)
