"""The `probe` part of a plan file: timetables, budget, alerts, history."""

from __future__ import annotations

import difflib
import re
from typing import Final

import msgspec

from ..errors import PlanError
from ..load.timetable import DAY_MIN
from ..plan.address import parse_url
from ..plan.plan import Alert, Probe, Secret, Target, Timetable
from ..plan.slo import objective_of
from .document import Node, keys_of
from .schema import ProbeKeys, TimetableKeys

TOTALS: Final = ("error_rate", "requests_per_s", "output_tokens_per_s", "cost_total_usd")
LOAD_KEYS: Final = ("load", "phases", "duration", "requests", "warmup")

_hours = re.compile(r"\s*([01]?\d|2[0-4]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)\s*").fullmatch


def probe_of(root: Node, target_nodes: list[Node], targets: tuple[Target, ...]) -> Probe:
    """The plan's Probe. Without a load of its own, a plan is probed by timetables. Raises PlanError."""
    node = root.child("probe")
    own = [node.mapping(keys_of(ProbeKeys))] if node.given else []
    own += [part.mapping(keys_of(TimetableKeys)) for each in target_nodes if (part := each.child("probe")).given]
    if not node.given:
        node = Node({}, node.path, node.source, node.environ)
    timed = next((part.child(key) for part in own for key in keys_of(TimetableKeys) if part.child(key).given), None)
    load = next((root.child(key) for key in LOAD_KEYS if root.child(key).given), None)
    if timed is not None and load is not None:
        raise timed.fail(f"and {load.path[-1]} cannot both be given: a probe has a timetable or a load")
    return Probe(
        **node.struct(Probe, skip=["alerts"]),
        given=bool(own),
        timetables=() if load is not None else _timetables(node, target_nodes, targets),
        alerts=_alerts(node, [target.name for target in targets]),
    )


def _timetables(node: Node, target_nodes: list[Node], targets: tuple[Target, ...]) -> tuple[Timetable, ...]:
    general = _timetable(node, Timetable(target="", every_ns=TimetableKeys().every_ns))
    tables = []
    for part, target in zip(target_nodes, targets, strict=True):
        own = part.child("probe")
        table = _timetable(own, general) if own.given else general
        tables.append(msgspec.structs.replace(table, target=target.name))
    return tuple(tables)


def _timetable(node: Node, general: Timetable) -> Timetable:
    given = node.struct(TimetableKeys, skip=["quiet_hours"])
    every_ns = given.get("every_ns", general.every_ns)
    jitter_ns = given.get("jitter_ns", min(general.jitter_ns, every_ns))
    if jitter_ns > every_ns:
        raise node.child("jitter").fail("must not be longer than every")
    quiet = node.child("quiet_hours")
    hours = _quiet(quiet) if quiet.given else general.quiet
    return Timetable(target="", every_ns=every_ns, jitter_ns=jitter_ns, quiet=hours)


def _quiet(node: Node) -> tuple[tuple[int, int], ...]:
    """`22:00-06:00`, or a list of such."""
    spans = []
    for item in node.items() if isinstance(node.value, list) else [node]:
        found = _hours(item.text())
        begin, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
        if begin == end or max(begin, end) > DAY_MIN:
            raise item.fail("must be two different times of the day, such as 22:00-06:00")
        spans.append((begin, end))
    return tuple(spans)


def _alerts(node: Node, targets: list[str]) -> tuple[Alert, ...]:
    general = _webhook(node.child("webhook"))
    alerts = node.child("alerts")
    found: list[Alert] = []
    for i, item in enumerate(alerts.items() if alerts.given else []):
        alert = _alert(item.mapping(keys_of(Alert)), i, targets, general)
        if alert.name in [each.name for each in found]:
            raise PlanError(
                f"two alerts are named {alert.name!r} ({item.source.location(item.path)}); names must differ"
            )
        found.append(alert)
    return tuple(found)


def _alert(node: Node, index: int, targets: list[str], general: Secret | None) -> Alert:
    if not node.child("when").given:
        raise node.fail("needs `when`, such as 'ttft_ms.p95 > 2000'")
    when = node.child("when").text(empty=False)
    try:
        objective = objective_of(when)
    except PlanError as error:
        raise PlanError(f"{str(error).replace('SLO', 'alert', 1)} ({node.source.location(node.path)})") from error
    if objective.statistic is None and objective.metric not in TOTALS:
        raise node.child("when").fail(f"cannot be judged over a window; totals that can: {', '.join(TOTALS)}")
    if objective.target or objective.phase:
        raise node.child("when").fail("cannot have a [target=NAME phase=NAME]; an alert has the key target")
    given = node.struct(Alert, skip=["webhook"])
    target = given.get("target")
    if target is not None and target not in targets:
        near = difflib.get_close_matches(target, targets, 1, 0.5)
        raise node.child("target").fail(f"is none of the plan's{f' (did you mean {near[0]!r}?)' if near else ''}")
    return Alert(**{"name": f"alert-{index + 1}"} | given, webhook=_webhook(node.child("webhook")) or general)


def _webhook(node: Node) -> Secret | None:
    """A URL that is a secret: it is what lets people post there."""
    if not node.given:
        return None
    url = node.text(empty=False)
    try:
        parse_url(url, what="webhook")
    except PlanError as error:
        raise PlanError(f"webhook must be an http:// or https:// URL ({node.source.location(node.path)})") from error
    return Secret(url)
