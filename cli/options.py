"""The options of `lens run`, and how they and a plan file become one Plan. A flag wins over the file.

An option mirrors a plan key; `apply_flags` writes it into the document, so that there is one place that checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ..engine.errors import PlanError
from ..engine.plan.plan import Plan
from ..engine.planfile.build import SIMULATED_MODEL, SOURCES, make_plan
from ..engine.planfile.document import Key, Source, read_document

Command = TypeVar("Command", bound=Callable[..., Any])

LOAD_FLAGS: Final = ("concurrency", "rate", "arrivals", "max_in_flight", "overflow", "stagger")
LOAD_KEYS: Final = {"concurrency": ("stagger",), "rate": ("arrivals", "max_in_flight", "overflow")}
PROMPT_FLAGS: Final = {
    "prompt": ("prompt",),
    "prompts": ("file",),
    "input_tokens": ("synthetic", "input_tokens"),
    "output_tokens": ("output_tokens",),
}
KEYS: Final = ("api_key", "api_key_env", "api_key_file")

OPTIONS: Final = (
    click.argument("plan_path", metavar="[PLAN]", required=False, type=click.Path()),
    click.option("--simulate", is_flag=True, help="Start the built-in provider and measure it; needs no other option."),
    click.option("--provider", metavar="NAME", help="The API's dialect (see `lens providers`). [default: openai]"),
    click.option("--base-url", metavar="URL", help="Where the API is; for openai it ends in /v1."),
    click.option("--model", metavar="NAME", help="The model to ask for."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key."),
    click.option("--api-key-file", metavar="FILE", help="File that holds the API key."),
    click.option("--header", metavar="'NAME: VALUE'", multiple=True, help="Another request header. Repeatable."),
    click.option("--ca-file", metavar="FILE", help="Trust this PEM file's authorities instead of the system's."),
    click.option("--insecure", is_flag=True, help="Accept any TLS certificate."),
    click.option("--proxy", metavar="URL", help="HTTP proxy, with credentials if needed; '' for none."),
    click.option("--fresh-connections", is_flag=True, help="A new connection for every request."),
    click.option("--no-stream", is_flag=True, help="Ask for whole replies; there is no TTFT then."),
    click.option("--prompt", metavar="TEXT", help="One prompt for all requests."),
    click.option("--prompts", metavar="FILE", help="Prompts from a JSONL, CSV or text file."),
    click.option("--input-tokens", metavar="N", help="Synthetic prompts of N tokens."),
    click.option("--output-tokens", metavar="N", help="Ask for at most N output tokens."),
    click.option("--concurrency", metavar="N", help="Closed loop: N requests in flight. [default: 8]"),
    click.option("--rate", metavar="R", help="Open loop: R requests per second, whatever the server does."),
    click.option("--arrivals", metavar="KIND", help="Open loop: constant, poisson or gamma:SHAPE. [default: constant]"),
    click.option("--max-in-flight", metavar="N", help="Open loop: cap of requests in flight."),
    click.option("--overflow", metavar="wait|drop", help="What a slot does when the cap is full. [default: wait]"),
    click.option("--stagger", metavar="TIME", help="Closed loop: spread the first requests over this long."),
    click.option("--requests", metavar="N", help="End after N requests. [default: 100 in closed loop]"),
    click.option("--duration", metavar="TIME", help="End after this long. [default: 30s in open loop]"),
    click.option("--warmup", metavar="TIME", help="The same load first for this long, not measured."),
    click.option("--timeout", metavar="TIME", help="Limit of one request. [default: 120s]"),
    click.option("--first-token-timeout", metavar="TIME", help="Limit until the first token."),
    click.option("--connect-timeout", metavar="TIME", help="Limit of connecting. [default: 10s]"),
    click.option("--rpm", metavar="N", help="Never more than N requests per minute."),
    click.option("--tpm", metavar="N", help="Never more than N tokens per minute."),
    click.option("--budget-usd", metavar="USD", help="Stop before the requests cost more than this."),
    click.option("--max-error-rate", metavar="SHARE", help="Stop when more than this share of requests fail."),
    click.option("--retries", metavar="N", help="Try a request that may be repeated N times more. [default: 0]"),
    click.option("--workers", metavar="N|auto", help="Worker processes. [default: one per physical core but one]"),
    click.option("--no-pin", is_flag=True, help="Do not pin processes to cores."),
    click.option("--seed", metavar="N", help="Seed of everything that is drawn. [default: 0]"),
    click.option("--slo", metavar="EXPR", multiple=True, help="Objective, such as 'ttft_ms.p99 <= 500'. Repeatable."),
    click.option("--name", metavar="NAME", help="Name of the run."),
    click.option("--out", metavar="DIR", help="Where run directories go. [default: runs]"),
    click.option("--export", metavar="URL", multiple=True, help="influxdb://..., prometheus://:9464, ... Repeatable."),
    click.option("--json", "as_json", is_flag=True, help="Print summary.json on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="No live view, no final table."),
    click.option("--strict", is_flag=True, help="Exit with 4 when the verdict is not VALID."),
)


def run_options(command: Command) -> Command:
    """Gives a click command all options of `lens run`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def plan_from(plan_path: str | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Plan:
    """The plan of a file and flags together. Raises PlanError."""
    document, source = read_document(plan_path) if plan_path else ({}, Source())
    apply_flags(document, source, flags)
    if flags.get("simulate"):
        name = "simulate"
    else:
        name = Path(plan_path).stem if plan_path else "run"
    return make_plan(document, source, environ, default_name=name)


def apply_flags(document: dict[str, Any], source: Source, flags: Mapping[str, Any]) -> None:
    """Writes what flags say into the document and notes which flag said it."""
    given = {name: value for name, value in flags.items() if value not in (None, False, ())}
    _target_flags(document, source, given)
    _workload_flags(document, source, given)
    _load_flags(document, source, given)
    for flag, path in {
        "timeout": ("limits", "timeout"),
        "first_token_timeout": ("limits", "first_token_timeout"),
        "connect_timeout": ("limits", "connect_timeout"),
        "rpm": ("limits", "rpm"),
        "tpm": ("limits", "tpm"),
        "budget_usd": ("limits", "budget_usd"),
        "max_error_rate": ("limits", "max_error_rate"),
        "seed": ("seed",),
        "name": ("name",),
        "out": ("output", "dir"),
    }.items():
        if flag in given:
            _put(document, source, path, given[flag], flag)
    if "retries" in given:
        _put(document, source, ("retry", "attempts"), _one_more(given["retries"]), "retries")
    if "workers" in given or "no_pin" in given:
        if not isinstance(document.get("workers", {}), dict):
            document["workers"] = {"count": document["workers"]}
        if "workers" in given:
            _put(document, source, ("workers", "count"), given["workers"], "workers")
        if "no_pin" in given:
            _put(document, source, ("workers", "pin"), False, "no_pin")
    if "slo" in given:
        _put(document, source, ("slo",), list(given["slo"]), "slo")
    if "export" in given:
        _put(document, source, ("export",), list(given["export"]), "export")


def _target_flags(document: dict[str, Any], source: Source, given: Mapping[str, Any]) -> None:
    names = ("provider", "base_url", "model", "api_key_env", "api_key_file", "ca_file", "proxy")
    used = [
        name for name in (*names, "header", "insecure", "fresh_connections", "no_stream", "simulate") if name in given
    ]
    if not used:
        return
    target, path = _only_target(document, used[0])
    for name in names:
        if name in given:
            _put(target, source, (name,), given[name], name, path)
    if "api_key_env" in given or "api_key_file" in given:
        for key in set(KEYS) - set(given):
            target.pop(key, None)
    for flag, key, value in (
        ("insecure", "verify_tls", False),
        ("fresh_connections", "fresh_connections", True),
        ("no_stream", "stream", False),
    ):
        if flag in given:
            _put(target, source, (key,), value, flag, path)
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
    for flag, keys in PROMPT_FLAGS.items():
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
    load = {name: given[name] for name in LOAD_FLAGS if name in given}
    for holder, path in _measured(document):
        if load:
            holder["load"] = _kept_load(holder.get("load"), load)
        for name, value in load.items():
            _put(holder["load"], source, (name,), value, name, (*path, "load"))
        for name in ("requests", "duration"):
            if name in given:
                _put(holder, source, (name,), given[name], name, path)


def _measured(document: dict[str, Any]) -> list[tuple[dict[str, Any], Key]]:
    """The phases that are measured, with their places; the top where there are none."""
    phases = document.get("phases")
    if phases is None:
        return [(document, ())]
    if not isinstance(phases, list):
        return []  # an error, told by make_plan
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
    return "--" + flag.replace("_", "-")


def _one_more(retries: str) -> int | str:
    try:
        return int(retries) + 1
    except ValueError:
        return retries
