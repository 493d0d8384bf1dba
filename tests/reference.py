"""The generated tables of REFERENCE.md, each between `<!-- begin NAME -->` and `<!-- end NAME -->`.

`python -m tests.reference --write` brings them up to date; a test holds that they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from llm_latency_lens.collectors.doctor.active_checks import TARGET_CHECKS
from llm_latency_lens.collectors.doctor.table import ACTIVE, PASSIVE
from llm_latency_lens.collectors.snapshot import Report
from llm_latency_lens.collectors.tick_health import LIMITS
from llm_latency_lens.collectors.verdict import AGAINST, NOTES
from llm_latency_lens.engine.metrics import CLIENT, METRICS, OUTCOMES, SERVER, STATISTICS, UNSENT
from llm_latency_lens.engine.plan.plan import Generic
from llm_latency_lens.engine.plan.slo import TOTALS
from llm_latency_lens.engine.plan.units import written_duration
from llm_latency_lens.engine.planfile.document import Field, fields_of
from llm_latency_lens.engine.planfile.flags import FLAGS
from llm_latency_lens.engine.planfile.schema import SECTIONS

PATH: Final = Path(__file__).parent.parent / "REFERENCE.md"
TITLES: Final = {
    "PlanKeys": "The plan", "TargetKeys": "targets", "WorkloadKeys": "workload", "SyntheticKeys": "workload.synthetic",
    "LengthKeys": "Lengths: input_tokens, output_tokens", "PhaseKeys": "phases", "LoadKeys": "load",
    "CourseKeys": "concurrency and rate over time", "SpikeKeys": "spike", "LimitsKeys": "limits",
    "CancelKeys": "limits.cancel", "Retry": "retry", "Workers": "workers", "ExportKeys": "export",
    "InfluxExport": "export.influxdb", "PrometheusExport": "export.prometheus", "OtlpExport": "export.otlp",
    "PluginExport": "export.plugin",
    "ProbeKeys": "probe", "TimetableKeys": "targets[].probe", "Alert": "probe.alerts", "Output": "output",
    "Generic": "targets[].http", "Gpus": "gpus",
}  # fmt: skip
UNITS: Final = {"duration": "duration", "seconds": "duration", "size": "size", "rate": "rate", "secret": "text"}
UNITS_OF_TEXT: Final = {"file": "file", "folder": "folder", "text": "text"}
TYPES: Final[dict[Any, str]] = {bool: "true or false", int: "integer", float: "number", str: "text"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    cells = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def metrics() -> str:
    rows = (
        (f"`{name}`", metric.label, metric.unit, f"{metric.start} to {metric.end}" if metric.end else "", metric.help)
        for name, metric in METRICS.items()
    )
    return table(("name", "label", "unit", "marks", "meaning"), rows)


def exported() -> str:
    """The metrics that databases get as a histogram in every tick."""
    rows = (
        (f"`{name}`", f"`{metric.prometheus}`", f"`{metric.otel}`")
        for name, metric in METRICS.items()
        if metric.prometheus
    )
    return table(("metric", "Prometheus", "OpenTelemetry"), rows)


def names(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def fields(catalogue: dict[str, Any]) -> str:
    return table(
        ("name", "meaning", "Prometheus"),
        (
            (f"`{name}`", field.help, f"`{field.prometheus}{'_total' * field.counter}`")
            for name, field in catalogue.items()
        ),
    )


def outcomes() -> str:
    rows = ((group, f"`{name}`", text) for group, listed in OUTCOMES.items() for name, text in listed.items())
    return table(("group", "outcome", "meaning"), rows)


def plan_keys() -> str:
    parts = []
    for struct in (*SECTIONS, Generic):
        rows = ((f"`{field.key}`", wanted(field), default_of(field), field.text) for field in fields_of(struct))
        parts.append(f"### {TITLES[struct.__name__]}\n\n" + table(("key", "type", "default", "meaning"), rows))
    return "\n\n".join(parts)


def wanted(field: Field) -> str:
    """The type of a key and its bounds, for people."""
    kind = field.type
    if field.unit:
        text = UNITS.get(field.unit) or UNITS_OF_TEXT[field.unit]
    elif get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    elif kind in TYPES:
        text = TYPES[kind]
    elif get_origin(kind) in (tuple, list):
        text = "list"
    elif get_args(kind) and get_origin(kind) is not dict:
        text = " or ".join(dict.fromkeys(TYPES.get(each, "mapping or list") for each in get_args(kind)))
    else:
        text = "any" if kind is Any else "mapping"
    limits = ((">", field.above), (">=", field.low), ("<=", field.high))
    bounds = [f"{sign} {shown(field, bound)}" for sign, bound in limits if bound is not None]
    return f"{text} {', '.join(bounds)}".strip()


def shown(field: Field, bound: float) -> str:
    return written_duration(int(bound)) if field.unit == "duration" else f"{bound:,.0f}" if bound > 1 else f"{bound:g}"


def default_of(field: Field) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None or value in ((), "", {}) or isinstance(value, msgspec.Struct) or "; default: " in field.text:
        return ""
    if field.unit == "duration":
        return f"`{written_duration(value)}`"
    if field.unit == "seconds":
        return f"`{value:g}s`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def flags() -> str:
    return table(
        ("flag", "key", "meaning"),
        (
            (f"`{flag.option}{' ' * bool(flag.metavar)}{flag.metavar}`", f"`{'.'.join(flag.path)}`" * bool(flag.path), flag.help)
            for flag in FLAGS
        ),
    )  # fmt: skip


def doctor() -> str:
    """Every check of `lens doctor`; those of a target stand once, for all targets."""
    rows = [(rule.name, "by reading, in every run too", rule.why) for rule in PASSIVE]
    rows += [(rule.name, "by measuring", rule.why) for rule in ACTIVE]
    rows += [(f"target.NAME.{name}", "with PLAN", why) for name, why, _ in TARGET_CHECKS]
    return table(("check", "made", "why"), ((f"`{name}`", made, why) for name, made, why in rows))


def summary() -> str:
    """Every key of summary.json with its type, from the struct that it is written from."""
    schema = msgspec.json.schema(Report)["$defs"]
    parts = []
    for name, part in schema.items():
        if "properties" not in part:
            continue
        rows = ((f"`{key}`", type_of(value)) for key, value in part["properties"].items())
        parts.append(f"**{name}**\n\n" + table(("key", "type"), rows))
    return "\n\n".join(parts)


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        items = schema.get("prefixItems", [schema.get("items") or {}])
        return f"list of {', '.join(map(type_of, items))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {type_of(schema['additionalProperties'])}"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return str(schema.get("type", "any"))


def verdict() -> str:
    """The verdict's rules, those that invalidate first."""
    rows = [(f"`{rule.code}`", "INVALID", rule.when) for rule in AGAINST]
    rows += [(f"`{rule.code}`", "note", rule.when) for rule in NOTES]
    return table(("code", "effect", "when"), rows)


def limits() -> str:
    """What limits this client in a tick."""
    rows = (
        (
            f"`{limit.code}`",
            limit.when,
            "no" if not limit.harms else "without segment stamps" if limit.stamps_protect else "yes",
        )
        for limit in LIMITS
    )
    return table(("reason", "when", "harms what is measured"), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "metrics": metrics,
    "exported": exported,
    "statistics": lambda: names(STATISTICS),
    "totals": lambda: names(TOTALS),
    "outcomes": outcomes,
    "unsent": lambda: table(("reason", "meaning"), ((f"`{name}`", text) for name, text in UNSENT.items())),
    "client": lambda: fields(CLIENT),
    "server": lambda: fields(SERVER),
    "verdict": verdict,
    "limits": limits,
    "summary": summary,
    "plan": plan_keys,
    "flags": flags,
    "doctor": doctor,
}


def current(text: str) -> str:
    """The document with every generated part as the code has it now."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- begin {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", part, text, flags=re.DOTALL)


if __name__ == "__main__" and "--write" in sys.argv:
    PATH.write_text(current(PATH.read_text(encoding="utf-8")), encoding="utf-8")
