"""Makes the one frozen Plan out of a plan file and flags. Everything is checked here, once; nothing is checked later.

Ordinary keys are read by their declaration in engine.plan.plan. What is here is what a declaration cannot say: defaults
that depend on other keys, short forms (`target` for a single one of `targets`; `load`, `duration`, `requests` at the top
instead of `phases`; `warmup`, an unmeasured phase with the first measured load), keys and headers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from ..errors import PlanError
from ..plan.plan import (
    SECOND,
    Limits,
    Load,
    Phase,
    Plan,
    Secret,
    Target,
    Workers,
    Workload,
)
from ..plan.slo import check_slo, precision_of
from ..plan.written import masked, stripped
from ..records.record import SERIES_MAX
from .document import Node, Source, fields_of, keys_of
from .exports import exports_of
from .probe import probe_of
from .reading import check_values
from .schema import (
    CancelKeys,
    LimitsKeys,
    PhaseKeys,
    PlanKeys,
)
from .shapes import flat, load_of
from .targets import target_nodes, targets_of
from .workload import workload_of

DEFAULT_REQUESTS: Final = 100  # of a closed-loop run that says neither requests nor duration
DEFAULT_DURATION_NS: Final = 30 * SECOND  # of an open-loop run that says neither
UNTIL_DURATION_NS: Final = 3600 * SECOND  # of a run of either kind that ends by `until` and says neither
SIMULATED_MODEL: Final = "simulated"
HIDDEN: Final = frozenset({"api_key", "headers", "proxy", "export", "webhook"})  # keys whose values no error may show

_token_times = re.compile(r"none|all|slowest:[1-9][0-9]{0,8}|0?\.[0-9]+|1(?:\.0*)?|[0-9]+(?:\.[0-9]+)?%").fullmatch


def make_plan(
    document: dict[str, Any], source: Source, environ: Mapping[str, str], *, default_name: str = "run"
) -> Plan:
    """The plan that `document` describes. Raises PlanError for the first thing that is wrong, with its location."""
    source.hidden = HIDDEN
    check_values(document, source)
    root = Node(document, (), source, environ).mapping(keys_of(PlanKeys))
    targets = targets_of(root)
    workload = workload_of(root.child("workload"))
    phases = _phases(root, workload)
    if len(phases) * len(targets) > SERIES_MAX:
        raise PlanError(
            f"phases x targets must be <= {SERIES_MAX}, got {len(phases)} x {len(targets)} "
            f"({source.location(('phases',))}); split the plan in two"
        )
    special = {
        "targets": targets,
        "workload": workload,
        "phases": phases,
        "limits": _limits(root.child("limits")),
        "slo": _slos(root.child("slo"), targets, phases),
        "until": _precisions(root.child("until")),
        "workers": _workers(root.child("workers")),
        "export": exports_of(root.child("export")),
        "probe": probe_of(root, target_nodes(root), targets),
    }
    plan = Plan(**{"name": default_name} | root.struct(Plan, skip=special) | special)
    _fits_together(plan, root)
    references = tuple((Secret(value), text) for value, text in sorted(source.references.items()))
    return msgspec.structs.replace(plan, references=references)


def plan_sha256(plan: Plan) -> str:
    """The plan's identity: SHA-256 of its form without secrets, so that it can be shown."""
    return hashlib.sha256(json.dumps(masked(stripped(plan)), sort_keys=True).encode()).hexdigest()


# --- phases and loads ---------------------------------------------------------------------------------------------


def _phases(root: Node, workload: Workload) -> tuple[Phase, ...]:
    listed = root.child("phases")
    if listed.given:
        for key in ("load", "duration", "requests"):
            if root.child(key).given:
                raise root.child(key).fail("and phases cannot both be given; put it into a phase")
        phases = tuple(_phase(node, i, workload) for i, node in enumerate(listed.items()))
        if not phases:
            raise listed.fail("must not be empty")
    else:
        phases = (_single(root, workload),)
    measured = next((phase for phase in phases if phase.measure), None)
    if measured is None:
        location = root.source.location(listed.path)
        raise PlanError(f"no phase is measured ({location}); leave out `measure: false` for at least one")
    names = [phase.name for phase in phases]
    for i, name in enumerate(names):
        if name in names[:i]:
            location = root.source.location((*listed.path, i))
            raise PlanError(
                f"phases[{names.index(name)}] has the name {name!r} already ({location}); names must differ"
            )
    warmup = root.child("warmup")
    if not warmup.given:
        return phases
    if "warmup" in names:
        raise warmup.fail("would be a second phase of that name; change the plan's own")
    return (_warmup(measured.load, warmup.duration(above=0)), *phases)


def _warmup(load: Load, duration: int) -> Phase:
    """The same load, flat at the level it begins with."""
    first = load.shapes[0]
    steady = msgspec.structs.replace(load, shapes=(flat(first.start or first.end, duration),))
    return Phase(name="warmup", load=steady, duration_ns=duration, measure=False)


def _single(root: Node, workload: Workload) -> Phase:
    duration, requests = _ends(root)
    load = load_of(root.child("load"), duration, workload)
    duration = _shaped(load, duration)
    if duration is None and requests is None:
        until = root.child("until").given
        if load.model == "closed" and not until:
            requests = DEFAULT_REQUESTS
        elif load.model != "replay":
            duration = UNTIL_DURATION_NS if until else DEFAULT_DURATION_NS
            load = load_of(root.child("load"), duration, workload)
    return Phase(name="main", load=load, duration_ns=duration, requests=requests)


def _phase(node: Node, index: int, workload: Workload) -> Phase:
    node.mapping(keys_of(PhaseKeys), "a mapping with load and duration or requests")
    duration, requests = _ends(node)
    load = load_of(node.child("load"), duration, workload)
    duration = _shaped(load, duration)
    if duration is None and requests is None and load.model != "replay":
        raise PlanError(f"the phase never ends: give duration or requests ({node.source.location(node.path)})")
    name = node.child("name")
    return Phase(
        name=name.text(empty=False) if name.given else f"phase-{index + 1}",
        load=load,
        duration_ns=duration,
        requests=requests,
        measure=node.child("measure").flag() if node.child("measure").given else True,
    )


def _shaped(load: Load, duration: int | None) -> int | None:
    """The phase's duration: as given, or as its steps make it; None where nothing says."""
    return duration if duration is not None else sum(shape.duration_ns for shape in load.shapes) or None


def _ends(node: Node) -> tuple[int | None, int | None]:
    """(duration in ns, requests) after which a phase ends."""
    given = node.struct(Phase, skip=["name", "measure"])
    return given.get("duration_ns"), given.get("requests")


# --- the rest -----------------------------------------------------------------------------------------------------


def _limits(node: Node) -> Limits:
    if not node.given:
        return Limits()
    given = node.mapping(keys_of(LimitsKeys)).struct(Limits)
    cancel = node.child("cancel")
    if cancel.given:
        wanted = cancel.mapping(keys_of(CancelKeys), "a mapping with share and after").struct(CancelKeys)
        given |= {"cancel_" + name: value for name, value in wanted.items()}
    return Limits(**given)


def _slos(node: Node, targets: tuple[Target, ...], phases: tuple[Phase, ...]) -> tuple[str, ...]:
    names, parts = [target.name for target in targets], [phase.name for phase in phases if phase.measure]
    return _expressions(node, lambda text: check_slo(text, names, parts))


def _precisions(node: Node) -> tuple[str, ...]:
    return _expressions(node, precision_of)


def _expressions(node: Node, check: Callable[[str], object]) -> tuple[str, ...]:
    """One expression or a list of them, each checked with its location in the error."""
    found: list[str] = []
    for item in [node] if isinstance(node.value, str) else node.items() if node.given else []:
        text = item.text(empty=False)
        try:
            check(text)
        except PlanError as error:
            raise PlanError(f"{error} ({item.source.location(item.path)})") from error
        found.append(text)
    return tuple(found)


def _workers(node: Node) -> Workers:
    if not node.given:
        return Workers()
    inner = isinstance(node.value, dict)
    count = node.child("count") if inner else node
    given = node.mapping(keys_of(Workers)).struct(Workers, skip=["count"]) if inner else {}
    if count.given and count.value != "auto":
        given["count"] = count.read(next(field for field in fields_of(Workers) if field.key == "count"))
    return Workers(**given)


def _fits_together(plan: Plan, root: Node) -> None:
    """Checks that need more than one key."""
    limits = plan.limits
    if limits.first_token_timeout_ns is not None and limits.first_token_timeout_ns > limits.timeout_ns:
        raise root.child("limits").child("first_token_timeout").fail("is longer than timeout, and could never fire")
    if plan.workload.kind == "sessions" and any(phase.load.model == "open" for phase in plan.phases):
        raise PlanError("sessions need concurrency, or a rate of sessions")
    if not _token_times(plan.output.token_times):
        raise root.child("output").child("token_times").fail("must be none, all, a share such as 0.01, or slowest:N")
