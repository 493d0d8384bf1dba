"""The flags of `lens run`, from the declared keys, and how they are written into a plan document. A flag wins over the file.

Most flags are a key under another name: their help, metavar and default come from its declaration. The others (`OTHERS`)
stand for a value, for one more than theirs, or for a name and a value at once. Everything is checked where files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from ..errors import PlanError
from ..plan.plan import Hosts, Output, Workers
from ..plan.units import written_duration
from .build import SIMULATED_MODEL
from .document import Field, Key, Source, fields_of
from .schema import SOURCES, LimitsKeys, LoadKeys, PlanKeys, TargetKeys, WorkloadKeys

KEYS: Final = ("api_key", "api_key_env", "api_key_file")
LOAD_KEYS: Final = {"concurrency": ("stagger",), "rate": ("arrivals", "max_in_flight", "overflow")}


class Flag(NamedTuple):
    """One option: `--name METAVAR`; a switch has no metavar. `path` is the key that it sets, empty for the others."""

    name: str  # as click names its parameter
    metavar: str
    help: str
    path: tuple[str, ...] = ()
    multiple: bool = False

    @property
    def option(self) -> str:
        """As it is written on the command line."""
        return _option(self.name)


def _of(struct: type[msgspec.Struct], *path: str) -> list[Flag]:
    """The flags that the declarations of a struct name."""
    found: list[Flag] = []
    for field in fields_of(struct):
        if field.flag:
            word, _, metavar = field.flag.partition(" ")
            many = field.key in ("slo", "until", "export")
            found.append(Flag(word[2:].replace("-", "_"), metavar, _sentence(field), (*path, field.key), multiple=many))
    return found


def _sentence(field: Field) -> str:
    """The help of a flag: the key's meaning, and its default where it has one."""
    text, _, own = field.text.partition("; default: ")
    default = own or ("" if field.default in (None, msgspec.NODEFAULT, "", (), 0, False) else _shown(field))
    return f"{text[0].upper()}{text[1:]}." + (
        f" [default: {default}]" if default and not own.startswith("the ") else ""
    )


def _shown(field: Field) -> str:
    return written_duration(field.default) if field.unit == "duration" else str(field.default)


OTHERS: Final = (
    Flag("simulate", "", "Start the built-in provider and measure it."),
    Flag("header", "'NAME: VALUE'", "Another request header. Repeatable.", multiple=True),
    Flag("insecure", "", "Accept any TLS certificate."),
    Flag("no_stream", "", "Ask for complete replies; there is no TTFT then."),
    Flag("input_tokens", "N", "Synthetic prompts of N tokens."),
    Flag("output_tokens", "N", "Ask for at most N output tokens."),
    Flag("retries", "N", "Try a request that may be repeated N times more. [default: 0]"),
    Flag("no_pin", "", "Do not pin processes to cores."),
    Flag("as_json", "", "Print summary.json on stdout and nothing else."),
    Flag("quiet", "", "No live view, no final table."),
    Flag("strict", "", "Exit with 4 when the verdict is not VALID or an SLO is UNDECIDED."),
)
TARGET: Final = _of(TargetKeys)
LOAD: Final = _of(LoadKeys)
LENGTH: Final = [flag for flag in _of(PlanKeys) if flag.name in ("requests", "duration", "warmup")]
PLAIN: Final = [
    *_of(LimitsKeys, "limits"),
    *_of(Workers, "workers"),
    *_of(Hosts, "hosts"),
    *(flag for flag in _of(PlanKeys) if flag not in LENGTH),
    *_of(Output, "output"),
]
FLAGS: Final = (*TARGET, *_of(WorkloadKeys), *LOAD, *LENGTH, *PLAIN, *OTHERS)

_TARGET_NAMES: Final = [flag.name for flag in TARGET]
_PROMPT_KEYS: Final = {
    "prompt": ("prompt",),
    "prompts": ("file",),
    "input_tokens": ("synthetic", "input_tokens"),
    "output_tokens": ("output_tokens",),
}


def apply_flags(document: dict[str, Any], source: Source, flags: Mapping[str, Any]) -> None:
    """Writes what flags say into the document and notes which flag said it."""
    given = {name: value for name, value in flags.items() if value not in (None, False, ())}
    _target_flags(document, source, given)
    _workload_flags(document, source, given)
    _load_flags(document, source, given)
    if ("workers" in given or "no_pin" in given) and not isinstance(document.get("workers", {}), dict):
        document["workers"] = {"count": document["workers"]}
    for flag in PLAIN:
        if flag.name in given:
            value = list(given[flag.name]) if flag.multiple else given[flag.name]
            _put(document, source, flag.path, value, flag.name)
    if "retries" in given:
        _put(document, source, ("retry", "attempts"), _one_more(given["retries"]), "retries")
    if "no_pin" in given:
        _put(document, source, ("workers", "pin"), False, "no_pin")


def _target_flags(document: dict[str, Any], source: Source, given: Mapping[str, Any]) -> None:
    used = [name for name in (*_TARGET_NAMES, "header", "insecure", "no_stream", "simulate") if name in given]
    if not used:
        return
    target, path = _only_target(document, used[0])
    for name in _TARGET_NAMES:
        if name in given:
            _put(target, source, (name,), given[name], name, path)
    if "api_key_env" in given or "api_key_file" in given:
        for key in set(KEYS) - set(given):
            target.pop(key, None)
    for flag, key in (("insecure", "verify_tls"), ("no_stream", "stream")):
        if flag in given:
            _put(target, source, (key,), False, flag, path)
    for header in given.get("header", ()):
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise PlanError("--header must be 'NAME: VALUE'; one was given without a colon")
        _drop_header(target, name.strip())
        _put(target, source, ("headers", name.strip()), value.strip(), "header", path)
    if "simulate" in given:  # needs no key: nobody has to have one to try a plan
        for key in set(KEYS) - set(given):
            target.pop(key, None)
        target.setdefault("model", SIMULATED_MODEL)
        target.setdefault("name", "simulator")


def _drop_header(target: dict[str, Any], name: str) -> None:
    """Names of headers know no case: the flag's header replaces the file's."""
    headers = target.get("headers")
    if isinstance(headers, dict):
        target["headers"] = {key: v for key, v in headers.items() if str(key).lower() != name.lower()}


def _only_target(document: dict[str, Any], flag: str) -> tuple[dict[str, Any], Key]:
    """The one target that a flag speaks of, made if there is none."""
    many = document.get("targets")
    if isinstance(many, list) and len(many) > 1:
        raise PlanError(f"{_option(flag)} is for one target, the plan has {len(many)}; change the plan instead")
    if isinstance(many, list) and many and isinstance(many[0], dict):
        return many[0], ("targets", 0)
    target = document.setdefault("target", {})
    if not isinstance(target, dict):
        raise PlanError(f"target must be a mapping, got {target!r}")
    return target, ("target",)


def _workload_flags(document: dict[str, Any], source: Source, given: Mapping[str, Any]) -> None:
    ways = [name for name in ("prompt", "prompts", "input_tokens") if name in given]
    if len(ways) > 1:
        raise PlanError(f"{_option(ways[0])} and {_option(ways[1])} cannot both be given; they name different prompts")
    if not ways and "output_tokens" not in given:
        return
    workload = document.get("workload")
    if isinstance(workload, str):
        workload = {"prompt": workload}
    document["workload"] = workload = dict(workload) if isinstance(workload, dict) else {}
    holder = workload
    path: Key = ("workload",)
    if isinstance(workload.get("prompts"), dict):
        holder = workload["prompts"] = dict(workload["prompts"])
        path = ("workload", "prompts")
    if ways:
        _other_prompts(workload, holder, keep="synthetic" if ways == ["input_tokens"] else None)
    for flag, keys in _PROMPT_KEYS.items():
        if flag in given:
            _put(holder, source, keys, given[flag], flag, path)


def _other_prompts(workload: dict[str, Any], holder: dict[str, Any], *, keep: str | None) -> None:
    """Makes room for a flag's prompts; the options beside the file's prompts stay."""
    if not isinstance(workload.get("prompts"), dict):
        workload.pop("prompts", None)
    for key in {*SOURCES, "template"} - {keep}:
        workload.pop(key, None)
        holder.pop(key, None)
    if keep and isinstance(holder.get(keep), dict):
        holder[keep] = dict(holder[keep])


def _load_flags(document: dict[str, Any], source: Source, given: Mapping[str, Any]) -> None:
    """The flags speak of what is measured: warm-up phases of the file stay as they are."""
    if "concurrency" in given and "rate" in given:
        raise PlanError("--concurrency (closed loop) and --rate (open loop) cannot both be given; choose one")
    if "warmup" in given:
        _put(document, source, ("warmup",), given["warmup"], "warmup")
    load = {flag.name: given[flag.name] for flag in LOAD if flag.name in given}
    for holder, path in _measured(document):
        if load:
            holder["load"] = _kept_load(holder.get("load"), load)
        for name, value in load.items():
            _put(holder["load"], source, (name,), value, name, (*path, "load"))
        for name in ("requests", "duration"):
            if name in given:
                _put(holder, source, (name,), given[name], name, path)


def _measured(document: dict[str, Any]) -> list[tuple[dict[str, Any], Key]]:
    """The phases that are measured, with their locations; the top where there are none."""
    phases = document.get("phases")
    if phases is None:
        return [(document, ())]
    if not isinstance(phases, list):
        return []  # an error that make_plan reports
    found: list[tuple[dict[str, Any], Key]] = []
    for i, phase in enumerate(phases):
        if isinstance(phase, dict) and phase.get("measure", True) is not False:
            phases[i] = dict(phase)  # YAML aliases share one
            found.append((phases[i], ("phases", i)))
    return found


def _kept_load(held: Any, load: Mapping[str, Any]) -> dict[str, Any]:
    """What of the file's load stays beside a flag: all, but with another load model only what that model knows."""
    kept = dict(held) if isinstance(held, dict) else {}
    for model, keys in LOAD_KEYS.items():
        if model in load:
            return {key: value for key, value in kept.items() if key in keys}
    return kept


def _put(
    document: dict[str, Any], source: Source, keys: tuple[str, ...], value: Any, flag: str, path: Key = ()
) -> None:
    holder = document
    for key in keys[:-1]:
        inner = holder.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = holder[key] = {}
        holder = inner
    holder[keys[-1]] = value
    source.flags[(*path, *keys)] = _option(flag)


def _option(flag: str) -> str:
    return "--json" if flag == "as_json" else "--" + flag.replace("_", "-")


def _one_more(retries: str) -> int | str:
    try:
        return int(retries) + 1
    except ValueError:
        return retries
