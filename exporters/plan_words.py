"""A plan in words: its load, its prompts, its targets' URLs. Pure, and light enough for the live view.

A plan is taken in the form of a plan file, as `engine.plan.written.masked` writes plan.json; what is missing or damaged in
it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from ..collectors.snapshot import Report
from ..engine.plan.plan import Plan
from ..engine.plan.written import masked
from . import figures

_ARRIVALS: Final = {"constant": "evenly spaced", "poisson": "Poisson arrivals"}
_SOURCES: Final = {
    "file": "rows of {}",
    "sharegpt": "ShareGPT conversations of {}",
    "trace": "the trace {}",
    "sessions": "the sessions of {}",
}

Document = dict[str, Any]  # a plan in the form of a plan file


def setting_line(plan: Plan, phase: str) -> str:
    """What a run that goes on measures: `llama at http://127.0.0.1:8000/v1 · steady: 20 requests/s, Poisson arrivals`."""
    document = masked(plan)
    first, *others = plan.targets
    words = f"{first.model or first.name} at {address(first.base_url)}" + f" and {len(others)} more" * bool(others)
    loads = {str(each.get("name")): each.get("load") for each in phases_of(document)}
    load = loads.get(phase)
    return f"{words} · {load_words(load)}" if isinstance(load, dict) else words


def address(url: str) -> str:
    """A URL without the user and password that may stand in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def load_lines(report: Report, plan: Document) -> list[str]:
    """A line per phase: `steady: 20 requests/s, Poisson arrivals, at most 100 in flight, 12 s`."""
    loads = {str(each.get("name")): each.get("load") for each in phases_of(plan)}
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
    loads = {str(each.get("name")): each.get("load") for each in phases_of(plan)}
    return [_short(loads.get(phase.name), phase.load) for phase in report.run.phases]


def _short(load: Any, model: str) -> str:
    for key, unit in (("rate", "/s"), ("concurrency", " at once")):
        if isinstance(load, dict) and key in load:
            stepped = isinstance(load[key], dict) and "steps" in load[key]
            return "steps" if stepped else f"{_over_time(load[key])}{unit}"
    return model.replace("_", " ")


def targets_of(plan: Document) -> list[dict[str, Any]]:
    """What of `targets` are targets; each may lack any key."""
    targets = plan.get("targets")
    return [each for each in targets if isinstance(each, dict)] if isinstance(targets, list) else []


def phases_of(plan: Document) -> list[dict[str, Any]]:
    """What of `phases` are phases; each may lack any key."""
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


def workload_lines(plan: Document) -> Iterator[str]:
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
