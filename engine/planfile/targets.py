"""The targets of a plan: URLs, keys and headers, which a declaration alone cannot check."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..dialects import Dialect
from ..dialects.http import pointers_of
from ..dialects.table import DIALECTS, dialect_names, dialect_of
from ..errors import PlanError
from ..plan.address import parse_url
from ..plan.plan import Generic, Secret, Target
from ..records.record import NO_TARGET
from ..wire.proxy import proxy_address
from .document import Node, keys_of
from .schema import DIALECT, PRICE_KINDS, TargetKeys

_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 5.6.2
_header_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch  # what latin-1 can carry, no controls
_secret_header = re.compile(r"key|token|auth|secret|cookie|password|credential", re.IGNORECASE).search
_variable_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch


def target_nodes(root: Node) -> list[Node]:
    one, many = root.child("target"), root.child("targets")
    if one.given and many.given:
        raise one.fail("and targets cannot both be given")
    return [one] if one.given else many.items() if many.given else []


def targets_of(root: Node) -> tuple[Target, ...]:
    nodes = target_nodes(root)
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
    provider = _provider(provider_node) if provider_node.given else DIALECT
    dialect = dialect_of(provider)
    base_url, public = _base_url(node.child("base_url"), provider, dialect)
    if not node.child("model").given and provider != "http":
        raise PlanError(f"model is missing ({node.source.location(node.path)}); give model, or --model NAME")
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
        "api_key": _api_key(node, dialect.key_variable, public, provider),
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


def _provider(node: Node) -> str:
    """The name of a dialect. Other packages are looked for only where ours do not have the name."""
    known = isinstance(node.value, str) and node.value in DIALECTS
    return node.choice(DIALECTS if known else dialect_names())


def _base_url(node: Node, provider: str, dialect: Dialect) -> tuple[str, bool]:
    """(URL, is it the provider's public endpoint by default?)"""
    if not node.given:
        default = dialect.default_base_url
        if default is None:
            raise PlanError(
                f"base_url is missing ({node.source.location(node.path)}): provider {provider} has no public one"
            )
        return default, True
    url = node.text(empty=False)
    location = node.source.location(node.path)
    if "?" in url or "#" in url:  # not shown: people put keys there
        raise PlanError(
            f"base_url must not have a query or fragment ({location}); use api_key, api_version or parameters"
        )
    try:
        address = parse_url(url)
    except PlanError as error:
        raise PlanError(f"{error} ({location})") from error
    if address.user is not None:
        raise PlanError(f"base_url must not hold credentials ({location}); use api_key or headers")
    return url, url.rstrip("/") == dialect.default_base_url


def _api_key(node: Node, variable: str | None, public: bool, provider: str) -> Secret | None:
    ways = [key for key in ("api_key", "api_key_env", "api_key_file") if node.child(key).given]
    if len(ways) > 1:
        raise PlanError(f"{' and '.join(ways)} cannot both be given ({node.source.location((*node.path, ways[1]))})")
    if ways == ["api_key"]:
        key = node.child("api_key")
        if not isinstance(key.value, str):
            raise PlanError(f"api_key must be text ({node.source.location(key.path)})")
        return _secret(key.text(), key)
    if ways == ["api_key_env"]:
        name = node.child("api_key_env")
        if not _variable_name(name.text(empty=False)):  # not shown: it may be the key itself
            raise PlanError(
                f"api_key_env must be the name of an environment variable, not the key ({name.source.location(name.path)})"
            )
        value = node.environ.get(name.text())
        if not value:
            state = "not set" if value is None else "empty"
            raise PlanError(
                f"environment variable {name.text()} is {state} ({name.source.location(name.path)}); put the key in it"
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
            f"no API key for {provider} ({node.source.location(node.path)}): set {variable}, or give --api-key-env NAME "
            "or --api-key-file FILE; only a base_url other than the provider's own works without one"
        )
    return None


def _secret(value: str, node: Node) -> Secret:
    reference, value = node.source.references.get(value), value.strip()
    if reference:
        node.source.references[value] = reference
    if not value:
        raise PlanError(f"the API key is empty ({node.source.location(node.path)})")
    if any(character < " " or character > "~" for character in value):
        raise PlanError(f"the API key holds characters that no header can carry ({node.source.location(node.path)})")
    return Secret(value)


def _headers(node: Node) -> dict[str, str | Secret]:
    """Values that come from the environment, or of headers that carry credentials, are secrets."""
    if not node.given:
        return {}
    headers: dict[str, str | Secret] = {}
    for name, value in node.entries().items():
        text, location = value.text(), node.source.location(value.path)
        if not _header_name(name):  # not shown: it may be a complete header with its key
            raise PlanError(
                f"a header's name is letters, digits and -, without spaces or colon ({node.source.location(node.path)})"
            )
        if not _header_value(text):
            raise PlanError(f"header {name} must be one line of characters that a header can carry ({location})")
        if name.lower() in map(str.lower, headers):
            raise PlanError(f"header {name} is given twice ({location})")
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
            raise PlanError(f"{error} ({node.source.location(node.path)})") from error
    return Secret(text)


def _generic(node: Node) -> Generic:
    node.mapping(Generic.__struct_fields__)
    try:
        generic = msgspec.convert(node.plain(), Generic)
        pointers_of(generic)
    except (msgspec.ValidationError, PlanError) as error:
        raise PlanError(f"http: {error} ({node.source.location(node.path)})") from error
    return generic


def _price(node: Node) -> dict[str, float] | None:
    if not node.given:
        return None
    node.mapping(PRICE_KINDS)
    if not {"input", "output"} <= set(node.value):
        raise node.fail("needs input and output, in USD per million tokens")
    return {kind: entry.number(low=0, high=1e6) for kind, entry in node.entries().items()}


def _urls(node: Node) -> tuple[str, ...]:
    """One URL or a list of them, without credentials: they are read by processes that hold no secrets."""
    found: list[str] = []
    for item in (node.items() if isinstance(node.value, list) else [node]) if node.given else []:
        text, location = item.text(empty=False), item.source.location(item.path)
        try:
            address = parse_url(text, what="metrics_url")
        except PlanError as error:
            raise PlanError(f"{error} ({location})") from error
        if address.user is not None:
            raise PlanError(f"metrics_url must not hold credentials ({location})")
        found.append(text)
    return tuple(found)
