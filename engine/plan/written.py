"""A plan as people and files may see it: in the form of a plan file, with every secret masked.

`lens run RUN_DIR/plan.json` runs it again: a text that came from ${NAME} is written as ${NAME}, under whatever key. A
secret that was written out is `***`, and is refused with what to put in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from .plan import MASK, Length, Load, Plan, PluginExport, Secret, Shape, Target, Timetable
from .units import written_duration
from .walk import mapped

# Names of parameters and headers whose text is a secret. As words: `max_tokens` is none.
_secret_name = re.compile(
    r"(?:^|[-_.])(?:api[-_]?key|key|token|secret|password|passwd|authorization|auth|credentials?|cookie)(?:$|[-_.])",
    re.IGNORECASE,
).search
_camel = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_variable = re.compile(r"\$(?=\{[A-Za-z_])")
_INTERNAL: Final = ("timetables", "given")  # of the probe: they have no key
_PRIVATE: Final = ("parameters", "system", "http")  # of a target: nobody but its worker needs them in clear


def masked(plan: Plan) -> dict[str, Any]:
    """The plan in plan-file form with every secret masked: what plan.json, logs and reports may hold."""
    references = {value.value: text for value, text in plan.references if value.value != MASK}
    kept = {text for _, text in plan.references}

    def shown(part: Any) -> Any:
        if isinstance(part, Secret):
            return references.get(part.value, part.value if part.value in kept or not part.value else MASK)
        if isinstance(part, str) and part not in kept:
            return references.get(part) or _variable.sub("$$$", part)
        return part

    document: dict[str, Any] = _without_secret_names(mapped(_document(plan), shown, Secret))
    template = plan.workload.template
    if template is not None:  # a template is not filled in when it is read
        document["workload"]["template"] = template
    return document


def stripped(plan: Plan) -> Plan:
    """The same plan with every secret replaced: what may be written to run.json. Names, models and URLs stay."""
    references = {value.value: text for value, text in plan.references if value.value != MASK}

    def strip(part: Any) -> Any:
        if isinstance(part, Secret):
            return Secret(references.get(part.value, part.value if part.value in texts else MASK))
        return part

    def private(part: Any) -> Any:
        return references.get(part, part) if isinstance(part, str) else strip(part)

    def without_private(part: Any) -> Any:
        return _without_secret_names(mapped(part, private, Secret), inside=True)

    texts = {text for _, text in plan.references}
    targets = tuple(
        msgspec.structs.replace(
            target,
            **{name: without_private(getattr(target, name)) for name in _PRIVATE},
        )
        for target in plan.targets
    )
    exports = tuple(
        msgspec.structs.replace(export, options=without_private(export.options))
        if isinstance(export, PluginExport)
        else export
        for export in plan.export
    )
    workload = msgspec.structs.replace(plan.workload, options=without_private(plan.workload.options))
    plan = msgspec.structs.replace(plan, targets=targets, export=exports, workload=workload, references=())
    result: Plan = mapped(plan, strip, Secret)
    return msgspec.structs.replace(result, references=tuple((Secret(MASK), text) for text in sorted(texts)))


def secrets(plan: Plan | Target) -> Iterator[str]:
    """Every secret value of the plan or target, for those who must check that none leaks."""
    found: list[str] = []

    def note(part: Any) -> Any:
        if isinstance(part, Secret):
            found.append(part.value)
        return part

    mapped(plan, note, Secret)
    yield from found


def is_secret_name(name: str) -> bool:
    """Is a parameter or header of this name a secret? `api_key`, `X-Auth-Token`, `apiKey`; not `max_tokens`."""
    return bool(_secret_name(_camel.sub("_", name)))


def _without_secret_names(part: Any, *, inside: bool = False) -> Any:
    """Text under a key like `api_token` is masked, at any depth of `parameters` and of a body."""
    if isinstance(part, dict):
        return {
            key: MASK
            if inside and isinstance(value, str) and is_secret_name(str(key)) and not value.startswith("${")
            else _without_secret_names(value, inside=inside or key in ("parameters", "body", "headers", "options"))
            for key, value in part.items()
        }
    if isinstance(part, msgspec.Struct):
        return msgspec.structs.replace(part, **_without_secret_names(msgspec.structs.asdict(part), inside=inside))
    if isinstance(part, list):
        return [_without_secret_names(item, inside=inside) for item in part]
    return part


def _document(plan: Plan) -> dict[str, Any]:
    document = _struct(plan)
    for name in ("references", "phases", "probe"):
        document.pop(name, None)
    document["targets"] = [_target(target) for target in plan.targets]
    document["workload"] = _workload(plan)
    limits = document["limits"]
    cancel = {"share": limits.pop("cancel_share"), "after": written_duration(plan.limits.cancel_after_ns)}
    limits.pop("cancel_after")
    if cancel["share"]:
        limits["cancel"] = cancel
    document["workers"]["count"] = plan.workers.count or "auto"
    document["export"] = [{export.kind: _struct(export)} for export in plan.export]
    if plan.probe.given:
        document["probe"] = {key: value for key, value in _struct(plan.probe).items() if key not in _INTERNAL}
    if plan.probe.timetables:  # they stand for a plan without a load of its own
        for target, table in zip(document["targets"], plan.probe.timetables if plan.probe.given else (), strict=False):
            target["probe"] = _timetable(table)
    else:
        document["phases"] = [_phase(phase.load, _struct(phase)) for phase in plan.phases]
    return document


def _struct(part: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct by their keys in a file; what is None or empty is left out."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        if value is None or (isinstance(value, tuple | dict) and not value):
            continue
        if field.name.endswith("_ns"):
            if value or field.name not in ("interval_ns",):
                found[field.encode_name] = written_duration(value)
        elif field.name == "burst_s":
            found[field.encode_name] = written_duration(round(value * 10**9))
        else:
            found[field.encode_name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return value
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _target(target: Target) -> dict[str, Any]:
    document = _struct(target)
    if not target.model:
        document.pop("model", None)
    return document


def _workload(plan: Plan) -> dict[str, Any]:
    workload = plan.workload
    document = _struct(workload)
    for name in ("kind", "prompt", "path", "input_tokens"):
        document.pop(name, None)
    if workload.kind == "synthetic":
        tokens = workload.input_tokens or Length(mean=550)
        source: Any = {"input_tokens": _length(tokens)}
    else:
        source = workload.prompt if workload.kind == "prompt" else workload.path
    if workload.output_tokens:
        document["output_tokens"] = _length(workload.output_tokens)
    return {"prompts": {workload.kind: source}, **document}


def _length(length: Length) -> Any:
    if length.kind == "uniform":
        return {"uniform": [length.low, length.high]}
    if length.kind == "empirical":
        return {"values": [*length.values]} | ({"weights": [*length.weights]} if length.weights else {})
    found: dict[str, Any] = {"mean": length.mean, "stddev": length.stddev, "distribution": length.kind}
    found["min"] = length.low
    return found | ({"max": length.high} if length.high is not None else {})


def _phase(load: Load, document: dict[str, Any]) -> dict[str, Any]:
    document["load"] = _load(load)
    return document


def _load(load: Load) -> dict[str, Any]:
    found: dict[str, Any] = {"replay": True}
    if load.model == "closed":
        found = {"concurrency": _over_time(load.shapes, integers=True), "stagger": written_duration(load.stagger_ns)}
    elif load.model in ("open", "partly_open"):
        shape = f":{load.gamma_shape!r}" if load.arrivals == "gamma" else ""
        found = {"rate": _over_time(load.shapes, integers=False), "arrivals": f"{load.arrivals}{shape}"}
    if load.max_in_flight is not None:
        found |= {"max_in_flight": load.max_in_flight, "overflow": load.overflow}
    return found


def _over_time(shapes: tuple[Shape, ...], *, integers: bool) -> Any:
    """A load's value over time."""
    kind = int if integers else float
    first = shapes[0]
    if len(shapes) > 1:
        return {"steps": [[kind(shape.start), written_duration(shape.duration_ns)] for shape in shapes]}
    if first.start != first.end:
        return {"from": kind(first.start), "to": kind(first.end), "curve": first.curve}
    return kind(first.start)


def _timetable(table: Timetable) -> dict[str, Any]:
    hours = [f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in table.quiet]
    found = {"every": written_duration(table.every_ns), "jitter": written_duration(table.jitter_ns)}
    return found | ({"quiet_hours": hours} if hours else {})
