"""The workload of a plan: its one source of prompts, and the lengths of texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import PlanError
from ..installed import plugin_of
from ..plan.plan import TOKENS_MAX, Length, Workload
from .document import Node, fields_of, keys_of
from .schema import LENGTHS, SOURCES, LengthKeys, SyntheticKeys, WorkloadKeys

_prompts_file = re.compile(r"\S*\.(?:jsonl|json|csv|txt)", re.IGNORECASE).fullmatch
_WORKLOAD: Final = {field.name: field for field in fields_of(Workload)}
_LENGTH: Final = {field.key: field for field in fields_of(LengthKeys)}


def workload_of(node: Node) -> Workload:
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
        if field.key in options and name not in ("template", "output_tokens", "options")
    }
    if plain.get("count_tokens") and "tokenizer" not in options:
        raise options["count_tokens"].fail("needs a tokenizer: a tokenizer.json, or o200k_base, cl100k_base, ...")
    if "template" in options:
        plain["template"] = _template(options["template"])
    output_tokens = _length(options["output_tokens"]) if "output_tokens" in options else None
    kind = str(source.path[-1]) if source is not None else "prompt"
    if "options" in options:
        if kind != "plugin":
            raise options["options"].fail("is for a workload of an installed package (plugin)")
        plain["options"] = options["options"].mapping(None).plain()
    if kind == "synthetic" and source is not None:
        source.mapping(keys_of(SyntheticKeys))
        plain["input_tokens"] = _length(source.child("input_tokens")) or Length(mean=550)
        output_tokens = output_tokens or _length(source.child("output_tokens"))
    made = _prompts_of(source) if source is not None and kind in ("prompt", "prompts") else Workload()
    if source is not None and kind in ("file", "sharegpt", "trace", "sessions"):
        made = Workload(kind=kind, path=source.file())  # type: ignore[arg-type]  # one of SOURCES
    elif kind == "plugin" and source is not None:
        made = Workload(kind="plugin", path=_plugin(source))
    elif kind == "synthetic":
        made = Workload(kind="synthetic")
    return msgspec.structs.replace(made, output_tokens=output_tokens, **plain)


def _plugin(node: Node) -> str:
    """The name of an installed workload, which can be loaded."""
    name = node.text(empty=False)
    try:
        plugin_of("workload", name)
    except PlanError as error:
        raise PlanError(f"{error} ({node.source.location(node.path)})") from error
    return name


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
    if node.path[-1:] != ("prompt",) and (_prompts_file(text) or _is_file(text)):
        return Workload(kind="file", path=node.file())
    return Workload(prompt=text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name can be
        return False


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
