"""What a run measured, in words: the targets and their URLs, the load of each phase, the prompts and their lengths.

From plan.json, as `engine.plan.written.masked` writes it, and from what was counted; a plan that is missing or damaged
leaves out its lines. The console, the live view and the HTML report print these lines first. Pure but for `Lengths.read`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ..collectors.snapshot import Report
from ..engine.runs.rundir import PLAN
from . import request_rows
from .plan_words import Document, address, load_lines, targets_of, workload_lines
from .steps import Step, steps_of

SAMPLED: Final = 20_000  # rows that lengths are read from
TARGETS_SHOWN: Final = 8


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
    lines += [("prompts", line) for line in workload_lines(plan)]
    lines += [("tokens", line) for line in _lengths(report, lengths)]
    return lines


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
