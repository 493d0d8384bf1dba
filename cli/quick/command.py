"""`lens quick [URL]`: the first measurement, without knowing a flag."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ...engine.errors import LensError, PlanError, TargetError
from ...engine.plan.plan import Plan
from ...engine.runs.interrupts import Interrupts
from ..options import plan_from
from .servers import PORTS, Found, Unreachable, local_servers, server_at

if TYPE_CHECKING:
    from ...collectors.snapshot import Report

LOAD: Final = {"warmup": "2s", "input_tokens": "256", "output_tokens": "64", "name": "quick"}
MODELS_SHOWN: Final = 8
CHOSEN_OF_MAX: Final = 20  # models a server of one's own may list; a longer list is a hosted API's, where each costs
NO_CHAT: Final = ("embed", "rerank", "whisper", "tts", "clip")  # parts of the names of models that answer no chat
KEYS: Final = frozenset({"OPENAI_API_KEY"})


@click.command()
@click.argument("url", required=False)
@click.option("--model", metavar="NAME", help="The model to ask for. [default: the first that the server lists]")
@click.option("--concurrency", metavar="N", default="4", show_default=True, help="Requests in flight.")
@click.option("--duration", metavar="TIME", default="20s", show_default=True, help="How long to measure.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key, for a URL.")
@click.option("--ca-file", metavar="FILE", help="Trust this PEM file's authorities instead of the system's.")
@click.option("--out", metavar="DIR", help="Where the run directory goes. [default: runs]")
def quick(url: str | None, **flags: Any) -> int:
    """Find an LLM server on this machine, or take the one at URL, measure it for 20 s, and answer in three sentences.

    The usual ports of vLLM, SGLang, TGI, llama.cpp, Ollama and LM Studio are asked for their list of models. The server
    then gets synthetic prompts of about 256 tokens, asked for at most 64 tokens each; a hosted API bills them. The run
    directory holds everything that `lens run` keeps.
    """
    from ..run import carry_out

    if url is not None and not url.strip():
        raise PlanError("the URL is empty; leave it out to look for a server on this machine")
    given = {name: value for name, value in flags.items() if value is not None} | LOAD
    with Interrupts() as interrupts:
        server, environ = _given(url, given) if url else (only_server(local_servers()), _without_keys())
        model = _model(server, given.pop("model", None))
        plan = plan_from(None, given | {"base_url": server.base_url, "model": model}, environ)
        click.echo(f"lens: {_announced(server, model, plan)}", err=True)
        return carry_out(plan, interrupts, as_json=False, quiet=False, strict=False, warn=False, show=_show)


def _show(report: Report) -> None:
    from ...exporters.answer import answer

    if report.requests.ok:
        for sentence in answer(report):
            click.echo(sentence)


def _without_keys() -> Mapping[str, str]:
    """A server that was found did not ask for a key: it must not be sent the key of another one."""
    return {name: value for name, value in os.environ.items() if name not in KEYS}


def _given(url: str, flags: Mapping[str, Any]) -> tuple[Found, Mapping[str, str]]:
    """The server at a URL, asked with the key that a run would use. Raises LensError."""
    base = url if "://" in url else f"http://{url}"
    plan = plan_from(None, {**flags, "base_url": base, "model": "any"})
    key = plan.targets[0].api_key
    found = server_at(url, {"Authorization": f"Bearer {key.value}"} if key else {}, plan.targets[0].ca_file)
    if isinstance(found, Unreachable):
        raise TargetError(
            f"{found.url}: {found.why}; give the URL of an OpenAI-compatible API, such as http://host:8000"
        )
    if found.refused in (401, 403):
        raise TargetError(
            f"{found.base_url} wants another key (HTTP {found.refused}); name its variable: --api-key-env NAME"
        )
    if found.refused:
        raise TargetError(
            f"{found.base_url}/models answers with HTTP {found.refused}; for another API than OpenAI's use lens init PROVIDER"
        )
    return found, os.environ


def only_server(found: Sequence[Found]) -> Found:
    """The one server on this machine. Raises LensError if there is none, or one has to be chosen."""
    open_ = [each for each in found if not each.refused]
    if len(open_) == 1:
        return open_[0]
    if open_:
        listed = "\n".join(f"  lens quick {each.base_url}   # {_models(each.models)}" for each in open_)
        raise PlanError(f"{len(open_)} servers answer on this machine; choose one:\n{listed}")
    if found:
        wanted = "\n".join(f"  lens quick {each.base_url} --api-key-env NAME" for each in found)
        raise TargetError(f"what answers on this machine wants a key; put it into a variable and name that:\n{wanted}")
    tried = ", ".join(f"{port} ({kind})" for port, kind in PORTS.items())
    raise TargetError(
        f"no LLM server lists its models on this machine; tried GET /v1/models on the loopback ports {tried}.\n"
        "Give the URL of one: lens quick http://HOST:PORT. Without any server: lens run --simulate"
    )


def _models(models: Sequence[str]) -> str:
    more = len(models) - MODELS_SHOWN
    return ", ".join(models[:MODELS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _model(server: Found, wanted: str | None) -> str:
    """The model to ask for. Raises PlanError where it is not served, or has to be chosen."""
    if wanted is not None:
        if wanted not in server.models:
            raise PlanError(f"--model {wanted} is not served by {server.base_url}; there are {_models(server.models)}")
        return wanted
    if len(server.models) > CHOSEN_OF_MAX:
        raise PlanError(
            f"{server.base_url} lists {len(server.models)} models ({_models(server.models)}); choose one: --model NAME"
        )
    chat = [model for model in server.models if not any(part in model.lower() for part in NO_CHAT)]
    if not chat:
        raise LensError(f"{server.base_url} lists no chat model ({_models(server.models)}); name one: --model NAME")
    return chat[0]


def _announced(server: Found, model: str, plan: Plan) -> str:
    """What is about to be measured."""
    phase = plan.phases[-1]
    load = f"{phase.load.shapes[0].start:g} requests in flight for {(phase.duration_ns or 0) / 1e9:g} s"
    usual = f" (the usual port of {server.kind})" if server.kind else ""
    others = len(server.models) - 1
    choice = f", one of {others + 1}: --model NAME takes another" if others else ""
    return f"measuring {model} at {server.base_url}{usual}, {load}{choice}"
