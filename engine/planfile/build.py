"""Makes the one frozen Plan out of a plan file and flags. Everything is checked here, once; nothing is checked later.

The public names are those of METRICS; durations, rates and sizes carry units (engine.units). Short forms: `target` for
a single one of `targets`; `load`, `duration`, `requests` at the top instead of `phases`. `warmup` puts an unmeasured phase
with the first measured load before the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ..dialects.http import pointers_of
from ..dialects.table import DIALECTS
from ..errors import PlanError
from ..plan.address import parse_url
from ..plan.plan import (
    MASK,
    SECOND,
    Export,
    Generic,
    Length,
    Limits,
    Load,
    Output,
    Phase,
    Plan,
    Retry,
    Secret,
    Shape,
    Target,
    Workers,
    Workload,
    masked,
)
from ..plan.slo import check_slo
from ..records.record import NO_TARGET, SERIES_MAX
from ..wire.proxy import proxy_address
from .document import Node, Source
from .probe import probe_of

DEFAULT_CONCURRENCY: Final = 8
DEFAULT_REQUESTS: Final = 100  # of a closed-loop run that says neither requests nor duration
DEFAULT_DURATION_NS: Final = 30 * SECOND  # of an open-loop run that says neither
SIMULATED_MODEL: Final = "simulated"
EXPORTERS: Final = {  # and their keys
    "influxdb": ("url", "org", "bucket", "token", "verify_tls", "interval", "hdr", "spool_max_bytes"),
    "prometheus": ("url",),
    "otlp": ("url", "headers", "interval", "spool_max_bytes"),
}
PRICE_KINDS: Final = ("input", "cached_input", "cache_write", "output", "reasoning")
HIDDEN: Final = frozenset({"api_key", "headers", "proxy", "export", "webhook"})  # keys whose values no error may show

_secret_header = re.compile(r"key|token|auth|secret|cookie|password|credential", re.IGNORECASE).search
_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 5.6.2
_header_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch  # what latin-1 can carry, no controls
_variable_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch

TOP: Final = [
    "name",
    "targets",
    "target",
    "workload",
    "phases",
    "load",
    "duration",
    "requests",
    "warmup",
    "limits",
    "retry",
    "slo",
    "workers",
    "export",
    "output",
    "seed",
    "price_table",
    "probe",
]
TARGET: Final = [
    "name",
    "provider",
    "base_url",
    "model",
    "api_key",
    "api_key_env",
    "api_key_file",
    "headers",
    "parameters",
    "system",
    "stream",
    "weight",
    "api_version",
    "http",
    "proxy",
    "verify_tls",
    "ca_file",
    "resolve",
    "fresh_connections",
    "max_connection_age",
    "rpm",
    "tpm",
    "burst",
    "metrics_url",
    "price",
    "probe",
]
SOURCES: Final = ("prompt", "file", "synthetic", "sharegpt", "trace", "sessions")
WORKLOAD: Final = (
    *SOURCES,
    *[
        "prompts",
        "template",
        "output_tokens",
        "tokenizer",
        "calibration",
        "count_tokens",
        "prefix",
        "prefix_tokens",
        "order",
        "time_scale",
        "think_time",
    ],
    "keep_replies",
)
LENGTHS: Final = {
    "mean": ["mean", "stddev", "distribution", "min", "max"],
    "uniform": ["uniform"],
    "values": ["values", "weights"],
}
LOAD: Final = ["concurrency", "rate", "replay", "arrivals", "max_in_flight", "overflow", "stagger"]
WAYS: Final = (("from", "to", "curve"), ("steps",), ("base", "spike"))  # in which a load's value changes over time
PHASE: Final = ["name", "duration", "requests", "load", "measure"]
LIMITS: Final = [
    "timeout",
    "first_token_timeout",
    "connect_timeout",
    "drain",
    "rpm",
    "tpm",
    "burst",
    "budget_usd",
    "max_error_rate",
    "error_window",
    "stop_on_slo",
    "cancel",
]
RETRY: Final = ["attempts", "backoff", "backoff_max", "factor", "jitter", "respect_retry_after"]
OUTPUT: Final = ["dir", "records", "records_max_bytes", "tick"]


def make_plan(
    document: dict[str, Any], source: Source, environ: Mapping[str, str], *, default_name: str = "run"
) -> Plan:
    """The plan that `document` describes. Raises PlanError for the first thing that is wrong, with its place."""
    source.hidden = HIDDEN
    root = Node(document, (), source, environ).mapping(TOP)
    targets = _targets(root)
    workload = _workload(root.child("workload"))
    phases = _phases(root, workload)
    if len(phases) * len(targets) > SERIES_MAX:
        raise PlanError(
            f"phases x targets must be <= {SERIES_MAX}, got {len(phases)} x {len(targets)} "
            f"({source.place(('phases',))}); split the plan in two"
        )
    name = root.child("name")
    plan = Plan(
        name=name.text(empty=False) if name.given else default_name,
        targets=targets,
        workload=workload,
        phases=phases,
        limits=_limits(root.child("limits")),
        retry=_retry(root.child("retry")),
        slo=_slos(root.child("slo")),
        workers=_workers(root.child("workers")),
        export=_exports(root.child("export")),
        output=_output(root.child("output")),
        seed=root.child("seed").integer(low=0) if root.child("seed").given else 0,
        price_table=_file(root.child("price_table")),
        probe=probe_of(root, _target_nodes(root), targets),
    )
    _fits_together(plan, root)
    return plan


def plan_sha256(plan: Plan) -> str:
    """The plan's identity: SHA-256 of its masked form, so that it can be shown."""
    return hashlib.sha256(json.dumps(masked(plan), sort_keys=True).encode()).hexdigest()


def stripped(plan: Plan) -> Plan:
    """The same plan with every secret replaced: what may be written to run.json."""
    stripped_plan: Plan = _strip(plan)
    return stripped_plan


def _strip(part: Any) -> Any:
    if isinstance(part, Secret):
        return Secret(MASK)
    if isinstance(part, msgspec.Struct):
        return msgspec.structs.replace(part, **{name: _strip(getattr(part, name)) for name in part.__struct_fields__})
    if isinstance(part, dict):
        return {key: _strip(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_strip(item) for item in part)
    return part


# --- targets ------------------------------------------------------------------------------------------------------


def _target_nodes(root: Node) -> list[Node]:
    one, many = root.child("target"), root.child("targets")
    if one.given and many.given:
        raise one.fail("and targets cannot both be given")
    return [one] if one.given else many.items() if many.given else []


def _targets(root: Node) -> tuple[Target, ...]:
    nodes = _target_nodes(root)
    if not nodes:
        raise PlanError(
            "the plan has no target; give --base-url URL --model NAME, --simulate, or targets in a plan file"
        )
    if len(nodes) >= NO_TARGET:
        raise root.child("targets").fail(f"must be fewer than {NO_TARGET}")
    targets: list[Target] = []
    for node in nodes:
        target = _target(node, {each.name for each in targets})
        targets.append(target)
    return tuple(targets)


def _target(node: Node, taken: set[str]) -> Target:
    node.mapping(TARGET, "a mapping with provider, base_url and model")
    provider_node = node.child("provider")
    provider = provider_node.choice(DIALECTS) if provider_node.given else "openai"
    dialect = DIALECTS[provider]
    base_url, public = _base_url(node.child("base_url"), provider)
    model = node.child("model")
    if not model.given and provider != "http":
        raise PlanError(f"model is missing ({node.source.place(node.path)}); give model, or --model NAME")
    name_node = node.child("name")
    name = name_node.text(empty=False) if name_node.given else _free_name(parse_url(base_url).host, taken)
    if name in taken:
        raise name_node.fail("stands for two targets; names must differ")
    http = node.child("http")
    if (provider == "http") != http.given:
        raise http.fail("is needed for provider http") if provider == "http" else http.fail("is only for provider http")
    return Target(
        name=name,
        provider=provider,
        base_url=base_url,
        model=model.text(empty=False) if model.given else "",
        api_key=_api_key(node, dialect.key_variable, public, provider),
        headers=_headers(node.child("headers")),
        parameters=node.child("parameters").mapping(None).plain() if node.child("parameters").given else {},
        system=node.child("system").text() if node.child("system").given else None,
        stream=_flag(node.child("stream"), True),
        weight=node.child("weight").number(above=0) if node.child("weight").given else 1.0,
        api_version=node.child("api_version").text(empty=False) if node.child("api_version").given else None,
        http=_generic(http) if http.given else None,
        proxy=_proxy(node.child("proxy")),
        verify_tls=_flag(node.child("verify_tls"), True),
        ca_file=_file(node.child("ca_file")),
        resolve=node.child("resolve").text(empty=False) if node.child("resolve").given else None,
        fresh_connections=_flag(node.child("fresh_connections"), False),
        max_connection_age_ns=_duration(node.child("max_connection_age")),
        rpm=_positive(node.child("rpm")),
        tpm=_positive(node.child("tpm")),
        burst_s=_duration(node.child("burst"), SECOND) / SECOND,
        metrics_urls=_urls(node.child("metrics_url")),
        price=_price(node.child("price")),
    )


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _base_url(node: Node, provider: str) -> tuple[str, bool]:
    """(URL, is it the provider's public endpoint by default?)"""
    if not node.given:
        default = DIALECTS[provider].default_base_url
        if default is None:
            raise PlanError(
                f"base_url is missing ({node.source.place(node.path)}): provider {provider} has no public one"
            )
        return default, True
    url = node.text(empty=False)
    place = node.source.place(node.path)
    if "?" in url or "#" in url:  # not shown: people put keys there
        raise PlanError(f"base_url must not have a query or fragment ({place}); use api_key, api_version or parameters")
    try:
        address = parse_url(url)
    except PlanError as error:
        raise PlanError(f"{error} ({place})") from error
    if address.user is not None:
        raise PlanError(f"base_url must not hold credentials ({place}); use api_key or headers")
    return url, url.rstrip("/") == DIALECTS[provider].default_base_url


def _api_key(node: Node, variable: str | None, public: bool, provider: str) -> Secret | None:
    ways = [key for key in ("api_key", "api_key_env", "api_key_file") if node.child(key).given]
    if len(ways) > 1:
        raise PlanError(f"{' and '.join(ways)} cannot both be given ({node.source.place((*node.path, ways[1]))})")
    if ways == ["api_key"]:
        key = node.child("api_key")
        if not isinstance(key.value, str):
            raise PlanError(f"api_key must be text ({node.source.place(key.path)})")
        return _secret(key.text(), key)
    if ways == ["api_key_env"]:
        name = node.child("api_key_env")
        if not _variable_name(name.text(empty=False)):  # not shown: it may be the key itself
            raise PlanError(
                f"api_key_env must be the name of an environment variable, not the key ({name.source.place(name.path)})"
            )
        value = node.environ.get(name.text())
        if not value:
            state = "not set" if value is None else "empty"
            raise PlanError(
                f"environment variable {name.text()} is {state} ({name.source.place(name.path)}); put the key in it"
            )
        return _secret(value, name)
    if ways == ["api_key_file"]:
        path = node.child("api_key_file")
        try:
            value = Path(path.text(empty=False)).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise path.fail(f"cannot be read: {reason}; it holds the key alone") from error
        return _secret(value, path)
    if variable and (value := node.environ.get(variable)):
        return _secret(value, node)
    if public:
        raise PlanError(
            f"no API key for {provider} ({node.source.place(node.path)}): set {variable}, or give --api-key-env NAME "
            "or --api-key-file FILE; only a base_url other than the provider's own works without one"
        )
    return None


def _secret(value: str, node: Node) -> Secret:
    value = value.strip()
    if not value:
        raise PlanError(f"the API key is empty ({node.source.place(node.path)})")
    if any(character < " " or character > "~" for character in value):
        raise PlanError(f"the API key holds characters that no header can carry ({node.source.place(node.path)})")
    return Secret(value)


def _headers(node: Node) -> dict[str, str | Secret]:
    """Values that come from the environment, or of headers that carry credentials, are secrets."""
    if not node.given:
        return {}
    headers: dict[str, str | Secret] = {}
    for name, value in node.entries().items():
        text, place = value.text(), node.source.place(value.path)
        if not _header_name(name):  # not shown: it may be a whole header with its key
            raise PlanError(
                f"a header's name is letters, digits and -, without spaces or colon ({node.source.place(node.path)})"
            )
        if not _header_value(text):
            raise PlanError(f"header {name} must be one line of characters that a header can carry ({place})")
        if name.lower() in map(str.lower, headers):
            raise PlanError(f"header {name} is given twice ({place})")
        secret = "${" in str(value.value) or _secret_header(name)
        headers[name] = Secret(text) if secret else text
    return headers


def _proxy(node: Node) -> Secret | None:
    if not node.given:
        return None
    text = node.text()
    if text:
        try:
            proxy_address(text, what="proxy")
        except PlanError as error:
            raise PlanError(f"{error} ({node.source.place(node.path)})") from error
    return Secret(text)


def _generic(node: Node) -> Generic:
    node.mapping(Generic.__struct_fields__)
    try:
        generic = msgspec.convert(node.plain(), Generic)
        pointers_of(generic)
    except (msgspec.ValidationError, PlanError) as error:
        raise PlanError(f"http: {error} ({node.source.place(node.path)})") from error
    return generic


def _price(node: Node) -> dict[str, float] | None:
    if not node.given:
        return None
    node.mapping(PRICE_KINDS)
    if not {"input", "output"} <= set(node.value):
        raise node.fail("needs input and output, in USD per million tokens")
    return {kind: entry.number(low=0) for kind, entry in node.entries().items()}


# --- workload -----------------------------------------------------------------------------------------------------


def _workload(node: Node) -> Workload:
    if not node.given:
        return Workload()
    if isinstance(node.value, str):
        return Workload(prompt=node.text(empty=False))
    node.mapping(WORKLOAD)
    prompts = node.child("prompts")
    if prompts.given and isinstance(prompts.value, str):
        holder, kinds = node, []
        prompt = prompts.text(empty=False)
    else:
        holder = prompts.mapping(WORKLOAD) if prompts.given else node
        kinds = [kind for kind in SOURCES if holder.child(kind).given]
        prompt = ""
    if len(kinds) > 1:
        raise holder.fail(f"has {' and '.join(kinds)}, one source of prompts is wanted")
    if prompts.given and (doubled := [key for key in SOURCES if node.child(key).given]):
        raise node.child(doubled[0]).fail("and prompts cannot both be given; one source of prompts is wanted")
    kind = kinds[0] if kinds else "prompt"
    source = holder.child(kind)
    if kind == "prompt" and source.given:
        prompt = source.text(empty=False)

    def option(name: str) -> Node:
        inner = holder.child(name)
        return inner if inner.given else node.child(name)

    input_tokens = output_tokens = None
    if kind == "synthetic":
        source.mapping(["input_tokens", "output_tokens"])
        input_tokens = _length(source.child("input_tokens")) or Length(mean=550)
        output_tokens = _length(source.child("output_tokens"))
    output_tokens = _length(option("output_tokens")) or output_tokens
    if _flag(option("count_tokens"), False) and not option("tokenizer").given:
        raise option("count_tokens").fail("needs a tokenizer: a tokenizer.json, or o200k_base, cl100k_base, ...")
    return Workload(
        kind=kind,  # type: ignore[arg-type]  # one of SOURCES
        prompt=prompt or Workload().prompt,
        path=_file(source) or "" if kind in ("file", "sharegpt", "trace", "sessions") else "",
        template=_template(option("template")),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        tokenizer=option("tokenizer").text(empty=False) if option("tokenizer").given else None,
        calibration=option("calibration").number(above=0) if option("calibration").given else 1.0,
        count_tokens=_flag(option("count_tokens"), False),
        prefix=option("prefix").choice(["none", "unique", "shared"]) if option("prefix").given else "none",  # type: ignore[arg-type]  # checked
        prefix_tokens=option("prefix_tokens").integer(low=0) if option("prefix_tokens").given else 0,
        order=option("order").choice(["sequential", "shuffle", "random"]) if option("order").given else "sequential",  # type: ignore[arg-type]  # checked
        time_scale=option("time_scale").number(above=0) if option("time_scale").given else 1.0,
        think_time_ns=_duration(option("think_time"), low=0),
        keep_replies=_flag(option("keep_replies"), False),
    )


def _template(node: Node) -> str | None:
    """As it stands: ${...} in a template is text."""
    if node.given and not isinstance(node.value, str):
        raise node.fail("must be text with {{column}} in it")
    return node.value if node.given else None


def _length(node: Node) -> Length | None:
    """150 | {mean, stddev, distribution: normal|lognormal, min, max} | {uniform: [low, high]} | {values, weights}."""
    if not node.given:
        return None
    if not isinstance(node.value, dict):
        return Length(mean=node.integer(low=1))
    node.mapping([key for keys in LENGTHS.values() for key in keys])
    kinds = [key for key in LENGTHS if node.child(key).given]
    if len(kinds) != 1:
        raise node.fail("needs one of mean, uniform and values")
    for key in node.value:
        if key not in LENGTHS[kinds[0]]:
            raise node.child(key).fail(f"means nothing beside {kinds[0]}")
    low = node.child("min").integer(low=1) if node.child("min").given else 1
    high = node.child("max").integer(low=low) if node.child("max").given else None
    if node.child("uniform").given:
        ends = [end.integer(low=1) for end in node.child("uniform").items()]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise node.child("uniform").fail("must be [low, high]")
        return Length(kind="uniform", low=ends[0], high=ends[1], mean=sum(ends) / 2)
    if node.child("values").given:
        values = tuple(value.integer(low=1) for value in node.child("values").items())
        weights = tuple(w.number(low=0) for w in node.child("weights").items()) if node.child("weights").given else ()
        if not values or (weights and (len(weights) != len(values) or not sum(weights))):
            raise node.child("values").fail("must not be empty, and have one weight each or none")
        return Length(kind="empirical", values=values, weights=weights)
    mean = node.child("mean").number(above=0)
    stddev = node.child("stddev").number(low=0) if node.child("stddev").given else 0.0
    word = node.child("distribution")
    kind = word.choice(["fixed", "normal", "lognormal"]) if word.given else "normal" if stddev else "fixed"
    return Length(kind=kind, mean=mean, stddev=stddev, low=low, high=high)  # type: ignore[arg-type]  # checked


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
        place = root.source.place(listed.path)
        raise PlanError(f"no phase is measured ({place}); leave out `measure: false` for at least one")
    names = [phase.name for phase in phases]
    for i, name in enumerate(names):
        if name in names[:i]:
            place = root.source.place((*listed.path, i))
            raise PlanError(f"phases[{names.index(name)}] has the name {name!r} already ({place}); names must differ")
    warmup = root.child("warmup")
    if not warmup.given:
        return phases
    if "warmup" in names:
        raise warmup.fail("would be a second phase of that name; change the plan's own")
    return (_warmup(measured.load, warmup.duration()), *phases)


def _warmup(load: Load, duration: int) -> Phase:
    """The same load, flat at the level it begins with."""
    first = load.shapes[0]
    steady = msgspec.structs.replace(load, shapes=(_flat(first.start or first.end, duration),))
    return Phase(name="warmup", load=steady, duration_ns=duration, measure=False)


def _single(root: Node, workload: Workload) -> Phase:
    duration, requests = _duration(root.child("duration")), _count(root.child("requests"))
    load = _load(root.child("load"), duration, workload)
    duration = _shaped(load, duration)
    if duration is None and requests is None:
        if load.model == "closed":
            requests = DEFAULT_REQUESTS
        elif load.model != "replay":
            duration = DEFAULT_DURATION_NS
            load = _load(root.child("load"), duration, workload)
    return Phase(name="main", load=load, duration_ns=duration, requests=requests)


def _phase(node: Node, index: int, workload: Workload) -> Phase:
    node.mapping(PHASE, "a mapping with load and duration or requests")
    duration, requests = _duration(node.child("duration")), _count(node.child("requests"))
    load = _load(node.child("load"), duration, workload)
    duration = _shaped(load, duration)
    if duration is None and requests is None and load.model != "replay":
        raise PlanError(f"the phase never ends: give duration or requests ({node.source.place(node.path)})")
    name = node.child("name")
    return Phase(
        name=name.text(empty=False) if name.given else f"phase-{index + 1}",
        load=load,
        duration_ns=duration,
        requests=requests,
        measure=_flag(node.child("measure"), True),
    )


def _shaped(load: Load, duration: int | None) -> int | None:
    """The phase's duration: as given, or as its steps make it; None where nothing says."""
    return duration if duration is not None else sum(shape.duration_ns for shape in load.shapes) or None


def _load(node: Node, duration: int | None, workload: Workload) -> Load:
    if not node.given:
        if workload.kind == "trace":
            return Load(model="replay", shapes=(_flat(0, duration or 0),))
        return Load(model="closed", shapes=(_flat(DEFAULT_CONCURRENCY, duration or 0),))
    node.mapping(LOAD, "a mapping with concurrency, rate or replay")
    kinds = [key for key in ("concurrency", "rate", "replay") if node.child(key).given]
    if len(kinds) != 1:
        if kinds:
            raise node.fail(f"has {' and '.join(kinds)}, one of them is wanted")
        for key in node.value:  # the flag or line that has nothing to hold on to
            raise node.child(key).fail("needs rate, concurrency or replay beside it")
        raise node.fail("needs concurrency, rate or replay")
    if kinds == ["concurrency"]:
        for key in ("arrivals", "max_in_flight", "overflow"):
            if node.child(key).given:
                raise node.child(key).fail("is for open loop (rate); closed loop (concurrency) has no arrivals")
        stagger = _duration(node.child("stagger"), 0, low=0)
        return Load(model="closed", shapes=_shapes(node.child("concurrency"), duration, whole=True), stagger_ns=stagger)
    if node.child("stagger").given:
        raise node.child("stagger").fail("is for closed loop (concurrency)")
    cap = node.child("max_in_flight")
    overflow = node.child("overflow")
    if overflow.given and not cap.given:
        raise overflow.fail("says what happens beyond max_in_flight, which is missing")
    in_flight = cap.integer(low=1) if cap.given else None
    beyond: Any = overflow.choice(["wait", "drop"]) if overflow.given else "wait"
    if kinds == ["replay"]:
        if not node.child("replay").flag():
            raise node.child("replay").fail("must be true, or left out")
        if workload.kind != "trace":
            raise node.child("replay").fail("needs a workload with timestamps: workload.trace")
        return Load(model="replay", shapes=(_flat(0, duration or 0),), max_in_flight=in_flight, overflow=beyond)
    arrivals, shape = _arrivals(node.child("arrivals"))
    return Load(
        model="partly_open" if workload.kind == "sessions" else "open",
        shapes=_shapes(node.child("rate"), duration, whole=False),
        arrivals=arrivals,
        gamma_shape=shape,
        max_in_flight=in_flight,
        overflow=beyond,
    )


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
    if not 0 < value < float("inf"):
        raise node.fail("must be gamma:SHAPE with a number > 0")
    return kind, value


def _flat(value: float, duration: int) -> Shape:
    return Shape(duration_ns=duration, start=value, end=value)


def _shapes(node: Node, duration: int | None, *, whole: bool) -> tuple[Shape, ...]:
    """A value over time: a number, {from, to, curve}, {steps} or {base, spike}."""
    if not isinstance(node.value, dict):
        return (_flat(_level(node, whole, zero=False), duration or 0),)
    node.mapping(["from", "to", "curve", "steps", "base", "spike"])
    ways = [keys for keys in WAYS if any(node.child(key).given for key in keys)]
    if len(ways) > 1:
        raise node.fail("needs from and to, or steps, or base and spike")
    if node.child("steps").given:
        return _steps(node.child("steps"), duration, whole)
    if duration is None:
        raise node.fail("changes over time: the phase needs a duration")
    if node.child("base").given and node.child("spike").given:
        return _spike(node, duration, whole)
    if not (node.child("from").given and node.child("to").given):
        raise node.fail("needs from and to, steps, or base and spike")
    start, end = _level(node.child("from"), whole, zero=True), _level(node.child("to"), whole, zero=True)
    curve: Any = node.child("curve").choice(["linear", "exponential"]) if node.child("curve").given else "linear"
    if curve == "exponential" and not (start > 0 and end > 0):
        raise node.fail("cannot grow exponentially from or to 0")
    if not start and not end:
        raise node.fail("is 0 from beginning to end")
    return (Shape(duration_ns=duration, start=start, end=end, curve=curve),)


def _steps(node: Node, duration: int | None, whole: bool) -> tuple[Shape, ...]:
    steps = node.items()
    if not steps:
        raise node.fail("must not be empty")
    shapes = _stepped(node, steps, duration, whole)
    if not any(shape.start for shape in shapes):
        raise node.fail("are 0 from beginning to end")
    return shapes


def _stepped(node: Node, steps: list[Node], duration: int | None, whole: bool) -> tuple[Shape, ...]:
    if all(isinstance(step.value, list) for step in steps):
        shapes: list[Shape] = []
        for step in steps:
            pair = step.items()
            if len(pair) != 2:
                raise step.fail("must be [value, duration]")
            shapes.append(_flat(_level(pair[0], whole, zero=True), pair[1].duration()))
        total = sum(shape.duration_ns for shape in shapes)
        if duration is not None and duration != total:
            raise node.fail(f"last {total / SECOND:g} s together, the phase {duration / SECOND:g} s")
        return tuple(shapes)
    if duration is None:
        raise node.fail("without durations of their own need a phase with a duration")
    if len(steps) > duration:
        raise node.fail("are more than the phase has ns")
    ends = [duration * (i + 1) // len(steps) for i in range(len(steps))]
    spans = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return tuple(_flat(_level(step, whole, zero=True), span) for step, span in zip(steps, spans, strict=True))


def _spike(node: Node, duration: int, whole: bool) -> tuple[Shape, ...]:
    base = _level(node.child("base"), whole, zero=True)
    spike = node.child("spike").mapping(["to", "at", "for"], "a mapping with to, at and for")
    for key in ("to", "at", "for"):
        if not spike.child(key).given:
            raise spike.fail(f"needs {key}")
    at, length = spike.child("at").duration(above=None, low=0), spike.child("for").duration()
    rest = duration - at - length
    if rest < 0:
        raise spike.fail(f"ends after the phase, which lasts {duration / SECOND:g} s")
    parts = [_flat(base, at), _flat(_level(spike.child("to"), whole, zero=False), length), _flat(base, rest)]
    return tuple(part for part in parts if part.duration_ns)


def _level(node: Node, whole: bool, *, zero: bool) -> float:
    if whole:
        return node.integer(low=0 if zero else 1)
    return node.rate(low=0, above=None) if zero else node.rate()


# --- the rest -----------------------------------------------------------------------------------------------------


def _limits(node: Node) -> Limits:
    if not node.given:
        return Limits()
    node.mapping(LIMITS)
    plain = Limits()
    cancel = node.child("cancel")
    if cancel.given:
        cancel.mapping(["share", "after"], "a mapping with share and after")
    share, error_rate, budget = (
        cancel.child("share") if cancel.given else cancel,
        node.child("max_error_rate"),
        node.child("budget_usd"),
    )
    return Limits(
        connect_timeout_ns=_duration(node.child("connect_timeout"), plain.connect_timeout_ns),
        first_token_timeout_ns=_duration(node.child("first_token_timeout")),
        timeout_ns=_duration(node.child("timeout"), plain.timeout_ns),
        drain_ns=_duration(node.child("drain"), plain.drain_ns, low=0),
        rpm=_positive(node.child("rpm")),
        tpm=_positive(node.child("tpm")),
        burst_s=_duration(node.child("burst"), SECOND) / SECOND,
        budget_usd=budget.number(above=0) if budget.given else None,
        max_error_rate=error_rate.number(low=0, high=1) if error_rate.given else None,
        error_window_ns=_duration(node.child("error_window"), plain.error_window_ns),
        stop_on_slo=_flag(node.child("stop_on_slo"), False),
        cancel_share=share.number(low=0, high=1) if share.given else 0.0,
        cancel_after_ns=_duration(cancel.child("after"), 0, low=0) if cancel.given else 0,
    )


def _retry(node: Node) -> Retry:
    if not node.given:
        return Retry()
    node.mapping(RETRY)
    plain = Retry()
    factor, jitter = node.child("factor"), node.child("jitter")
    return Retry(
        attempts=node.child("attempts").integer(low=1, high=1000) if node.child("attempts").given else plain.attempts,
        backoff_ns=_duration(node.child("backoff"), plain.backoff_ns, low=0),
        backoff_max_ns=_duration(node.child("backoff_max"), plain.backoff_max_ns),
        factor=factor.number(low=1) if factor.given else plain.factor,
        jitter=jitter.number(low=0, high=1) if jitter.given else plain.jitter,
        respect_retry_after=_flag(node.child("respect_retry_after"), True),
    )


def _slos(node: Node) -> tuple[str, ...]:
    if not node.given:
        return ()
    expressions: list[str] = []
    for item in [node] if isinstance(node.value, str) else node.items():
        expression = item.text(empty=False)
        try:
            check_slo(expression)
        except PlanError as error:
            raise PlanError(f"{error} ({item.source.place(item.path)})") from error
        expressions.append(expression)
    return tuple(expressions)


def _workers(node: Node) -> Workers:
    if not node.given:
        return Workers()
    if not isinstance(node.value, dict):
        return Workers(count=_worker_count(node))
    node.mapping(["count", "pin"])
    return Workers(
        count=_worker_count(node.child("count")) if node.child("count").given else None,
        pin=_flag(node.child("pin"), True),
    )


def _worker_count(node: Node) -> int | None:
    return None if node.value == "auto" else node.integer(low=1, high=1024)


def _exports(node: Node) -> tuple[Export, ...]:
    """{kind: {url, ...}}, a list of such mappings, or URLs whose scheme is the kind."""
    if not node.given:
        return ()
    exports: list[Export] = []
    for item in node.items() if isinstance(node.value, list) else [node]:
        if isinstance(item.value, str):
            exports.append(_export_url(item))
            continue
        for kind, entry in item.mapping(EXPORTERS).entries().items():
            exports += [_export(kind, one) for one in (entry.items() if isinstance(entry.value, list) else [entry])]
    return tuple(exports)


def _export_url(node: Node) -> Export:
    url = node.text(empty=False)
    kind = url.partition(":")[0].partition("+")[0]
    if kind not in EXPORTERS or ":" not in url:
        raise PlanError(
            f"export must begin with {', '.join(f'{each}://' for each in EXPORTERS)} ({node.source.place(node.path)})"
        )
    return Export(kind=kind, url=Secret(url))


EXPORT_OPTIONS: Final[dict[str, Callable[[Node], int]]] = {
    "interval": Node.duration,
    "spool_max_bytes": Node.size,
    "verify_tls": Node.flag,
    "hdr": Node.flag,
}


def _export(kind: str, node: Node) -> Export:
    options: dict[str, Any] = {}
    entries = _flat_headers(node.mapping(EXPORTERS[kind], "a mapping with url"))
    for key, value in entries.items():
        if key in EXPORT_OPTIONS:
            options[key] = EXPORT_OPTIONS[key](value)
            continue
        secret = key.startswith(("token", "password", "header.")) or "${" in str(value.value)
        plain = value.plain()
        if not isinstance(plain, str | int | float | bool):
            raise value.fail("must be text, a number, or true or false")
        options[key] = Secret(str(plain)) if secret else plain
    url = options.pop("url", "")
    return Export(kind=kind, url=url if isinstance(url, Secret) else Secret(str(url)), options=options)


def _flat_headers(node: Node) -> dict[str, Node]:
    """The options of an export, with `headers: {NAME: VALUE}` as `header.NAME`."""
    entries = node.entries()
    headers = entries.pop("headers", None)
    if headers is not None:
        entries |= {f"header.{name}": value for name, value in headers.mapping(None).entries().items()}
    return entries


def _output(node: Node) -> Output:
    if not node.given:
        return Output()
    node.mapping(OUTPUT)
    plain = Output()
    return Output(
        dir=node.child("dir").text(empty=False) if node.child("dir").given else plain.dir,
        records=_flag(node.child("records"), True),
        records_max_bytes=node.child("records_max_bytes").size()
        if node.child("records_max_bytes").given
        else plain.records_max_bytes,
        tick_ns=_duration(node.child("tick"), plain.tick_ns),
    )


def _fits_together(plan: Plan, root: Node) -> None:
    """What no single key can tell."""
    limits = plan.limits
    if limits.first_token_timeout_ns is not None and limits.first_token_timeout_ns > limits.timeout_ns:
        raise root.child("limits").child("first_token_timeout").fail("is longer than timeout, and could never fire")
    if plan.workload.kind == "sessions" and any(phase.load.model == "open" for phase in plan.phases):
        raise PlanError("sessions need concurrency, or a rate of sessions")


def _flag(node: Node, default: bool) -> bool:
    return node.flag() if node.given else default


def _duration(node: Node, default: Any = None, *, low: int | None = None) -> Any:
    if not node.given:
        return default
    return node.duration() if low is None else node.duration(above=None, low=low)


def _count(node: Node) -> int | None:
    return node.integer(low=1) if node.given else None


def _positive(node: Node) -> float | None:
    return node.per_minute() if node.given else None


def _urls(node: Node) -> tuple[str, ...]:
    """One URL or a list of them, without credentials: they are read by processes that hold no secrets."""
    found: list[str] = []
    for item in (node.items() if isinstance(node.value, list) else [node]) if node.given else []:
        text, place = item.text(empty=False), item.source.place(item.path)
        try:
            address = parse_url(text, what="metrics_url")
        except PlanError as error:
            raise PlanError(f"{error} ({place})") from error
        if address.user is not None:
            raise PlanError(f"metrics_url must not hold credentials ({place})")
        found.append(text)
    return tuple(found)


def _file(node: Node) -> str | None:
    """A path to a file that exists; relative paths count from where the command runs."""
    if not node.given:
        return None
    path = Path(node.text(empty=False)).expanduser()
    if not path.is_file():
        raise node.fail("does not exist" if not path.exists() else "is no file")
    return str(path)
