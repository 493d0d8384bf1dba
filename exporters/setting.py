"""What a run measured, in words: the targets and their URLs, the load of each phase, the prompts and their lengths.

From plan.json, as `engine.plan.written.masked` writes it, and from what was counted; a plan that is missing or damaged
leaves out its lines. The console, the live view and the HTML report print these lines first. Pure but for `Lengths.read`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from ..collectors.snapshot import Report
from ..engine.plan.plan import Plan
from ..engine.plan.written import masked
from ..engine.runs.rundir import PLAN
from . import figures, request_rows
from .steps import Step, steps_of

SAMPLED: Final = 20_000  # rows that lengths are read from
TARGETS_SHOWN: Final = 8
_ARRIVALS: Final = {"constant": "evenly spaced", "poisson": "Poisson arrivals"}
_SOURCES: Final = {
    "file": "rows of {}",
    "sharegpt": "ShareGPT conversations of {}",
    "trace": "the trace {}",
    "sessions": "the sessions of {}",
}

Document = dict[str, Any]  # a plan in the form of a plan file


class _TokenRow(msgspec.Struct, gc=False):
    outcome: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Lengths(msgspec.Struct):
    """Token counts of successful requests: of all of them, or of an even sample; empty where no rows were kept."""

    input: list[int] = msgspec.field(default_factory=list)
    output: list[int] = msgspec.field(default_factory=list)

    @classmethod
    def read(cls, run_dir: Path) -> Lengths:
        found = cls()
        try:
            for row in request_rows.sample(run_dir, _TokenRow, SAMPLED):
                if row.outcome == "ok":
                    if row.input_tokens is not None:
                        found.input.append(row.input_tokens)
                    if row.output_tokens is not None:
                        found.output.append(row.output_tokens)
        except OSError:  # the lengths are an addition: a report without them is still one
            return cls()
        return found


class Setting(NamedTuple):
    """What the report does not say itself. `steps` of a load that changes in steps."""

    plan: Document
    lengths: Lengths
    steps: Sequence[Step] = ()

    @classmethod
    def unknown(cls) -> Setting:
        return cls({}, Lengths())


def read_setting(run_dir: Path, report: Report) -> Setting:
    plan = read_plan(run_dir)
    return Setting(plan, Lengths.read(run_dir), steps_of(run_dir, report, plan))


def read_plan(run_dir: Path) -> Document:
    """plan.json; empty if it is missing or damaged."""
    try:
        found = json.loads((run_dir / PLAN).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def setting_lines(report: Report, setting: Setting) -> list[tuple[str, str]]:
    """(name, text); the name is empty where a line continues the one before it."""
    plan, lengths, _ = setting
    lines = [("" if i else "target", line) for i, line in enumerate(_targets(report, plan))]
    lines += [("" if i else "load", line) for i, line in enumerate(load_lines(report, plan))]
    lines += [("prompts", line) for line in _workload(plan)]
    lines += [("tokens", line) for line in _lengths(report, lengths)]
    return lines


def setting_line(plan: Plan, phase: str) -> str:
    """What a run that goes on measures: `llama at http://127.0.0.1:8000/v1 · steady: 20 requests/s, Poisson arrivals`."""
    document = masked(plan)
    first, *others = plan.targets
    words = f"{first.model or first.name} at {address(first.base_url)}" + f" and {len(others)} more" * bool(others)
    loads = {str(each.get("name")): each.get("load") for each in _phases(document)}
    load = loads.get(phase)
    return f"{words} · {load_words(load)}" if isinstance(load, dict) else words


def targets_of(plan: Document) -> list[dict[str, Any]]:
    targets = plan.get("targets")
    return [each for each in targets if isinstance(each, dict)] if isinstance(targets, list) else []


def _targets(report: Report, plan: Document) -> Iterator[str]:
    addresses = {str(each.get("name")): address(str(each.get("base_url") or "")) for each in targets_of(plan)}
    shown = report.targets[:TARGETS_SHOWN]
    for target in shown:
        words = [target.model] if target.model and target.model != target.name else []
        words += [f"as {target.name}"] if words and len(report.targets) > 1 else [] if words else [target.name]
        words += [f"at {url}"] if (url := addresses.get(target.name)) else []
        words += [f"({target.provider})"] if target.provider else []
        yield " ".join(words)
    if len(report.targets) > len(shown):
        yield f"and {len(report.targets) - len(shown)} more"


def address(url: str) -> str:
    """A URL without the user and password that may stand in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def load_lines(report: Report, plan: Document) -> list[str]:
    """A line per phase: `steady: 20 requests/s, Poisson arrivals, at most 100 in flight, 12 s`."""
    loads = {str(each.get("name")): each.get("load") for each in _phases(plan)}
    phases = report.run.phases
    if not phases:
        return [f"{report.run.load.replace('_', ' ')} loop"]
    lines = []
    for phase in phases:
        load = loads.get(phase.name)
        words = load_words(load) if isinstance(load, dict) else f"{phase.load.replace('_', ' ')} loop"
        name = f"{phase.name}: " if len(phases) > 1 else ""
        lines.append(f"{name}{words}, {figures.clock(phase.duration_s)}{'' if phase.measured else ', not measured'}")
    return lines


def short_loads(report: Report, plan: Document) -> list[str]:
    """The load of each phase in few words: `20/s`, `8 at once`, `10 to 50/s`, `steps`."""
    loads = {str(each.get("name")): each.get("load") for each in _phases(plan)}
    return [_short(loads.get(phase.name), phase.load) for phase in report.run.phases]


def _short(load: Any, model: str) -> str:
    for key, unit in (("rate", "/s"), ("concurrency", " at once")):
        if isinstance(load, dict) and key in load:
            stepped = isinstance(load[key], dict) and "steps" in load[key]
            return "steps" if stepped else f"{_over_time(load[key])}{unit}"
    return model.replace("_", " ")


def _phases(plan: Document) -> list[dict[str, Any]]:
    phases = plan.get("phases")
    return [each for each in phases if isinstance(each, dict)] if isinstance(phases, list) else []


def load_words(load: dict[str, Any]) -> str:
    """`20 requests/s, Poisson arrivals, at most 100 in flight`."""
    if "concurrency" in load:
        return f"{_over_time(load['concurrency'])} in flight at a time (closed loop)"
    if "rate" not in load:
        return "at the times of the trace" if load.get("replay") else "by a timetable"
    arrivals = str(load.get("arrivals", ""))
    law = _ARRIVALS.get(arrivals, f"{arrivals.replace(':', ' ')} arrivals") if arrivals else ""
    rate = f"{_over_time(load['rate'])} requests/s"
    words = [f"{rate}, {law} (open loop)" if law else f"{rate} (open loop)"]
    if load.get("max_in_flight") is not None:
        words.append(f"at most {load['max_in_flight']:,} in flight, others {load.get('overflow', 'wait')}")
    return ", ".join(words)


def _over_time(value: Any) -> str:
    if isinstance(value, dict) and "steps" in value:
        return ", ".join(f"{_number(step[0])} ({step[1]})" for step in value["steps"])
    if isinstance(value, dict):
        return f"{_number(value.get('from'))} to {_number(value.get('to'))}"
    return _number(value)


def _number(value: Any) -> str:
    return f"{value:,g}" if isinstance(value, int | float) else str(value)


def _workload(plan: Document) -> Iterator[str]:
    workload = plan.get("workload")
    prompts = workload.get("prompts") if isinstance(workload, dict) else None
    if not isinstance(workload, dict) or not isinstance(prompts, dict) or not prompts:
        return
    kind, source = next(iter(prompts.items()))
    if kind == "synthetic" and isinstance(source, dict):
        words = f"synthetic, {_length(source.get('input_tokens'))} tokens asked for"
    elif kind == "prompt":
        text = " ".join(str(source).split())
        words = f"the same for each request: {text[:60]!r}{'...' * (len(text) > 60)}"
    else:
        words = _SOURCES.get(kind, "{}").format(source)
    if workload.get("output_tokens") is not None:
        words += f"; replies of at most {_length(workload['output_tokens'])} tokens"
    if workload.get("prefix") not in (None, "none"):
        words += f"; a {workload['prefix']} prefix of {workload.get('prefix_tokens', 0):,} tokens"
    yield words


def _length(length: Any) -> str:
    if not isinstance(length, dict):
        return _number(length)
    if "uniform" in length:
        return " to ".join(map(_number, length["uniform"]))
    if "values" in length:
        return "an empirical distribution of"
    spread = length.get("stddev")
    mean = _number(length.get("mean"))
    return f"{mean} ± {_number(spread)} ({length.get('distribution')})" if spread else mean


def _lengths(report: Report, lengths: Lengths) -> Iterator[str]:
    parts = [f"{name} {_levels(values)}" for name, values in _sides(report, lengths) if values]
    if parts:
        source = f" (counted by: {report.tokens.source})" if report.tokens.source else ""
        yield f"measured per request: {'; '.join(parts)}{source}"


def _sides(report: Report, lengths: Lengths) -> tuple[tuple[str, Sequence[float]], ...]:
    """Without rows, the mean that the totals still say."""
    ok, sums = report.requests.ok, (report.tokens.input, report.tokens.output)
    means = [[total / ok] if total and ok else [] for total in sums]
    return ("input", lengths.input or means[0]), ("output", lengths.output or means[1])


def _levels(values: Sequence[float]) -> str:
    """`p50 300, p5 to p95 62 to 540`, or the one value there is."""
    ordered = sorted(values)
    low, middle, high = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.05, 0.5, 0.95))
    if ordered[0] == ordered[-1]:
        return f"{middle:,.0f}" + (" on average" if len(ordered) == 1 else "")
    return f"{middle:,.0f} at the median ({low:,.0f} to {high:,.0f} for 90 %)"
