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
from urllib.parse import urlsplit

import msgspec

from ..dialects.http import pointers_of
from ..dialects.table import DIALECTS
from ..errors import PlanError
from ..plan.address import parse_url
from ..plan.plan import (
    EXPORTS,
    SECOND,
    TOKENS_MAX,
    Export,
    Generic,
    Length,
    Limits,
    Load,
    Phase,
    Plan,
    PrometheusExport,
    Secret,
    Target,
    Workers,
    Workload,
)
from ..plan.slo import check_slo, precision_of
from ..plan.written import is_secret_name, masked, stripped
from ..records.record import NO_TARGET, SERIES_MAX
from ..wire.proxy import proxy_address
from .document import Node, Source, fields_of, keys_of
from .probe import probe_of
from .reading import check_values
from .schema import (
    LENGTHS,
    PRICE_KINDS,
    SOURCES,
    CancelKeys,
    LengthKeys,
    LimitsKeys,
    PhaseKeys,
    PlanKeys,
    SyntheticKeys,
    TargetKeys,
    WorkloadKeys,
)
from .shapes import flat, load_of

DEFAULT_REQUESTS: Final = 100  # of a closed-loop run that says neither requests nor duration
DEFAULT_DURATION_NS: Final = 30 * SECOND  # of an open-loop run that says neither
SIMULATED_MODEL: Final = "simulated"
HIDDEN: Final = frozenset({"api_key", "headers", "proxy", "export", "webhook"})  # keys whose values no error may show

_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 5.6.2
_header_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch  # what latin-1 can carry, no controls
_secret_header = re.compile(r"key|token|auth|secret|cookie|password|credential", re.IGNORECASE).search
_variable_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_token_times = re.compile(r"none|all|slowest:[1-9][0-9]{0,8}|0?\.[0-9]+|1(?:\.0*)?|[0-9]+(?:\.[0-9]+)?%").fullmatch
_prompts_file = re.compile(r"\S*\.(?:jsonl|json|csv|txt)", re.IGNORECASE).fullmatch


def make_plan(
    document: dict[str, Any], source: Source, environ: Mapping[str, str], *, default_name: str = "run"
) -> Plan:
    """The plan that `document` describes. Raises PlanError for the first thing that is wrong, with its place."""
    source.hidden = HIDDEN
    check_values(document, source)
    root = Node(document, (), source, environ).mapping(keys_of(PlanKeys))
    targets = _targets(root)
    workload = _workload(root.child("workload"))
    phases = _phases(root, workload)
    if len(phases) * len(targets) > SERIES_MAX:
        raise PlanError(
            f"phases x targets must be <= {SERIES_MAX}, got {len(phases)} x {len(targets)} "
            f"({source.place(('phases',))}); split the plan in two"
        )
    special = {
        "targets": targets,
        "workload": workload,
        "phases": phases,
        "limits": _limits(root.child("limits")),
        "slo": _slos(root.child("slo"), targets, phases),
        "until": _precisions(root.child("until")),
        "workers": _workers(root.child("workers")),
        "export": _exports(root.child("export")),
        "probe": probe_of(root, _target_nodes(root), targets),
    }
    plan = Plan(**{"name": default_name} | root.struct(Plan, skip=special) | special)
    _fits_together(plan, root)
    references = tuple((Secret(value), text) for value, text in sorted(source.references.items()))
    return msgspec.structs.replace(plan, references=references)


def plan_sha256(plan: Plan) -> str:
    """The plan's identity: SHA-256 of its form without secrets, so that it can be shown."""
    return hashlib.sha256(json.dumps(masked(stripped(plan)), sort_keys=True).encode()).hexdigest()


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
        targets.append(_target(node, {each.name for each in targets}))
    return tuple(targets)


def _target(node: Node, taken: set[str]) -> Target:
    node.mapping(keys_of(TargetKeys), "a mapping with provider, base_url and model")
    provider_node = node.child("provider")
    provider = provider_node.choice(DIALECTS) if provider_node.given else "openai"
    base_url, public = _base_url(node.child("base_url"), provider)
    if not node.child("model").given and provider != "http":
        raise PlanError(f"model is missing ({node.source.place(node.path)}); give model, or --model NAME")
    name_node = node.child("name")
    name = name_node.text(empty=False) if name_node.given else _free_name(parse_url(base_url).host, taken)
    if name in taken:
        raise name_node.fail("stands for two targets; names must differ")
    http = node.child("http")
    if (provider == "http") != http.given:
        raise http.fail("is needed for provider http") if provider == "http" else http.fail("is only for provider http")
    special: dict[str, Any] = {
        "name": name,
        "provider": provider,
        "base_url": base_url,
        "api_key": _api_key(node, DIALECTS[provider].key_variable, public, provider),
        "headers": _headers(node.child("headers")),
        "parameters": node.child("parameters").mapping(None).plain() if node.child("parameters").given else {},
        "http": _generic(http) if http.given else None,
        "proxy": _proxy(node.child("proxy")),
        "metrics_urls": _urls(node.child("metrics_url")),
        "price": _price(node.child("price")),
    }
    return Target(**node.struct(Target, skip=special) | special)


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
        node.source.references[value.strip()] = f"${{{name.text()}}}"
        return _secret(value, name)
    if ways == ["api_key_file"]:
        path = node.child("api_key_file")
        try:
            value = path.user_path().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise path.fail(f"cannot be read: {reason}; it holds the key alone") from error
        return _secret(value, path)
    if variable and (value := node.environ.get(variable)):
        node.source.references[value.strip()] = f"${{{variable}}}"
        return _secret(value, node)
    if public:
        raise PlanError(
            f"no API key for {provider} ({node.source.place(node.path)}): set {variable}, or give --api-key-env NAME "
            "or --api-key-file FILE; only a base_url other than the provider's own works without one"
        )
    return None


def _secret(value: str, node: Node) -> Secret:
    reference, value = node.source.references.get(value), value.strip()
    if reference:
        node.source.references[value] = reference
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
        secret = "${" in str(value.value) or is_secret_name(name) or _secret_header(name)
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
    return {kind: entry.number(low=0, high=1e6) for kind, entry in node.entries().items()}


# --- workload -----------------------------------------------------------------------------------------------------

_WORKLOAD: Final = {field.name: field for field in fields_of(Workload)}
_LENGTH: Final = {field.key: field for field in fields_of(LengthKeys)}


def _workload(node: Node) -> Workload:
    if not node.given:
        return Workload()
    if isinstance(node.value, str):
        return _prompts_of(node)
    node.mapping(keys_of(WorkloadKeys))
    holder, source = _source(node)
    options = _merged(holder, node)
    plain = {
        name: options[field.key].read(field)
        for name, field in _WORKLOAD.items()
        if field.key in options and name not in ("template", "output_tokens")
    }
    if plain.get("count_tokens") and "tokenizer" not in options:
        raise options["count_tokens"].fail("needs a tokenizer: a tokenizer.json, or o200k_base, cl100k_base, ...")
    if "template" in options:
        plain["template"] = _template(options["template"])
    output_tokens = _length(options["output_tokens"]) if "output_tokens" in options else None
    kind = str(source.path[-1]) if source is not None else "prompt"
    if kind == "synthetic" and source is not None:
        source.mapping(keys_of(SyntheticKeys))
        plain["input_tokens"] = _length(source.child("input_tokens")) or Length(mean=550)
        output_tokens = output_tokens or _length(source.child("output_tokens"))
    made = _prompts_of(source) if source is not None and kind in ("prompt", "prompts") else Workload()
    if source is not None and kind in ("file", "sharegpt", "trace", "sessions"):
        made = Workload(kind=kind, path=source.file())  # type: ignore[arg-type]  # one of SOURCES
    elif kind == "synthetic":
        made = Workload(kind="synthetic")
    return msgspec.structs.replace(made, output_tokens=output_tokens, **plain)


def _source(node: Node) -> tuple[Node, Node | None]:
    """(the mapping that holds the source of prompts, the source): beside the other keys, or under `prompts`."""
    prompts = node.child("prompts")
    inner = prompts.given and not isinstance(prompts.value, str)
    holder = prompts.mapping(keys_of(WorkloadKeys)) if inner else node
    kinds = [kind for kind in SOURCES if holder.child(kind).given]
    if (inner and len(kinds) > 1) or (not inner and not prompts.given and len(kinds) > 1):
        raise holder.fail(f"has {' and '.join(kinds)}, one source of prompts is wanted")
    if prompts.given and (doubled := [key for key in SOURCES if node.child(key).given]):
        raise node.child(doubled[0]).fail("and prompts cannot both be given; one source of prompts is wanted")
    if prompts.given and not inner:
        return holder, prompts
    return holder, holder.child(kinds[0]) if kinds else None


def _merged(holder: Node, node: Node) -> dict[str, Node]:
    """Every option by its key, from under `prompts` or from beside it."""
    given = {key: node.child(key) for key in node.value if node.child(key).given}
    return given | {key: holder.child(key) for key in holder.value if holder.child(key).given}


def _prompts_of(node: Node) -> Workload:
    """A text that names a file is the file: nobody wants `prompts.jsonl` as the prompt."""
    text = node.text(empty=False)
    if node.path[-1:] != ("prompt",) and _prompts_file(text):
        return Workload(kind="file", path=node.file())
    return Workload(prompt=text)


def _template(node: Node) -> str:
    """As it stands: ${...} in a template is text."""
    if not isinstance(node.value, str):
        raise node.fail("must be text with {{column}} in it")
    return node.value


def _length(node: Node) -> Length | None:
    """150 | {mean, stddev, distribution: normal|lognormal, min, max} | {uniform: [low, high]} | {values, weights}."""
    if not node.given:
        return None
    if not isinstance(node.value, dict):
        return Length(mean=node.integer(low=1, high=TOKENS_MAX))
    node.mapping(keys_of(LengthKeys))
    kinds = [key for key in LENGTHS if node.child(key).given]
    if len(kinds) != 1:
        raise node.fail("needs one of mean, uniform and values")
    for key in node.value:
        if key not in LENGTHS[kinds[0]]:
            raise node.child(key).fail(f"means nothing beside {kinds[0]}")
    return {"mean": _around, "uniform": _uniform, "values": _empirical}[kinds[0]](node)


def _around(node: Node) -> Length:
    """Fixed, normal or lognormal, between min and max."""
    given = node.struct(LengthKeys)
    low, high, stddev = given.get("min", 1), given.get("max"), given.get("stddev", 0.0)
    if high is not None and high < low:
        raise node.child("max").fail(f"must be >= {low}")
    kind: Any = given.get("distribution") or ("normal" if stddev else "fixed")
    return Length(kind=kind, mean=given["mean"], stddev=stddev, low=low, high=high)


def _uniform(node: Node) -> Length:
    ends = [end.integer(low=1, high=TOKENS_MAX) for end in node.child("uniform").items()]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise node.child("uniform").fail("must be [low, high]")
    return Length(kind="uniform", low=ends[0], high=ends[1], mean=sum(ends) / 2)


def _empirical(node: Node) -> Length:
    values = tuple(value.integer(low=1, high=TOKENS_MAX) for value in node.child("values").items())
    listed = node.child("weights")
    weights = tuple(each.number(low=0, high=_LENGTH["weights"].high) for each in listed.items()) if listed.given else ()
    if not values or (weights and (len(weights) != len(values) or not sum(weights))):
        raise node.child("values").fail("must not be empty, and have one weight each or none")
    return Length(kind="empirical", values=values, weights=weights)


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
        if load.model == "closed":
            requests = DEFAULT_REQUESTS
        elif load.model != "replay":
            duration = DEFAULT_DURATION_NS
            load = load_of(root.child("load"), duration, workload)
    return Phase(name="main", load=load, duration_ns=duration, requests=requests)


def _phase(node: Node, index: int, workload: Workload) -> Phase:
    node.mapping(keys_of(PhaseKeys), "a mapping with load and duration or requests")
    duration, requests = _ends(node)
    load = load_of(node.child("load"), duration, workload)
    duration = _shaped(load, duration)
    if duration is None and requests is None and load.model != "replay":
        raise PlanError(f"the phase never ends: give duration or requests ({node.source.place(node.path)})")
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
    """One expression or a list of them, each checked with its place in the error."""
    found: list[str] = []
    for item in [node] if isinstance(node.value, str) else node.items() if node.given else []:
        text = item.text(empty=False)
        try:
            check(text)
        except PlanError as error:
            raise PlanError(f"{error} ({item.source.place(item.path)})") from error
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


def _exports(node: Node) -> tuple[Export, ...]:
    """{kind: {url, ...}}, a list of such mappings, or URLs whose scheme is the kind."""
    if not node.given:
        return ()
    exports: list[Export] = []
    for item in node.items() if isinstance(node.value, list) else [node]:
        if isinstance(item.value, str):
            exports.append(_export_url(item))
            continue
        for kind, entry in item.mapping(EXPORTS).entries().items():
            exports += [_export(kind, one) for one in (entry.items() if isinstance(entry.value, list) else [entry])]
    return tuple(exports)


def _export_url(node: Node) -> Export:
    url = node.text(empty=False)
    kind = url.partition(":")[0].partition("+")[0]
    kind = {"influxdbs": "influxdb", "otlps": "otlp"}.get(kind, kind)
    if kind not in EXPORTS or ":" not in url:
        raise PlanError(
            f"export must begin with {', '.join(f'{each}://' for each in EXPORTS)} ({node.source.place(node.path)})"
        )
    return EXPORTS[kind](url=_usable(url, node))


def _export(kind: str, node: Node) -> Export:
    struct = EXPORTS[kind]
    given = node.mapping(keys_of(struct), "a mapping with url").struct(struct, skip=["headers"])
    headers = node.child("headers")
    if headers.given:
        given["headers"] = {name: Secret(value.text()) for name, value in headers.mapping(None).entries().items()}
    if "url" not in given and struct is not PrometheusExport:
        raise node.fail("needs url")
    if "url" in given:
        _usable(given["url"].value, node.child("url"))
    return struct(**given)


def _usable(url: str, node: Node) -> Secret:
    """A URL that urlsplit can take apart; the exporter itself knows the rest of its form."""
    try:
        _ = urlsplit(url).port
    except ValueError as error:  # its text would show the URL, which may hold a token
        raise node.fail("is no URL: its host or port cannot be understood") from error
    return Secret(url)


def _fits_together(plan: Plan, root: Node) -> None:
    """What no single key can tell."""
    limits = plan.limits
    if limits.first_token_timeout_ns is not None and limits.first_token_timeout_ns > limits.timeout_ns:
        raise root.child("limits").child("first_token_timeout").fail("is longer than timeout, and could never fire")
    if plan.workload.kind == "sessions" and any(phase.load.model == "open" for phase in plan.phases):
        raise PlanError("sessions need concurrency, or a rate of sessions")
    if not _token_times(plan.output.token_times):
        raise root.child("output").child("token_times").fail("must be none, all, a share such as 0.01, or slowest:N")


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
