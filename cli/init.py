"""`lens init PROVIDER|URL [FILE]`: a commented plan to begin with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import click

from ..engine.errors import OutputError, PlanError
from .quick.servers import Found, base_urls, models_at

PROMPT_TOKENS: Final = 550
REPLY_TOKENS: Final = 150
PLACEHOLDER: Final = "my-model"


class Template(NamedTuple):
    """What differs between providers. `base_url` is empty where the provider's public one is meant."""

    about: str
    target: str  # lines of YAML below `target:`
    model: str = PLACEHOLDER
    base_url: str = ""
    lists_models: bool = False  # base_url is a server of one's own that can be asked
    hosted: bool = False  # every request is billed, and rate limits hold


_METRICS: Final = """  # The server's own page, scraped beside the run: queue length, KV cache, running requests.
  metrics_url: {root}/metrics
"""
_MADE_TO_LENGTH: Final = """  # Replies of exactly the asked length; without it the model may stop early and lengths vary.
  parameters: {ignore_eos: true}
"""
_KEY: Final = """  # The key comes from this variable; it is never written into a run's files.
  api_key: "${{{variable}}}"
"""


def _own(about: str, port: int, extra: str = "") -> Template:
    root = f"http://127.0.0.1:{port}"
    return Template(
        about, "  provider: openai\n" + extra.replace("{root}", root), base_url=f"{root}/v1", lists_models=True
    )


def _hosted(about: str, provider: str, variable: str, model: str, extra: str = "", base_url: str = "") -> Template:
    target = f"  provider: {provider}\n{_KEY.format(variable=variable)}{extra}"
    return Template(about, target, model, base_url, hosted=True)


TEMPLATES: Final[Mapping[str, Template]] = {
    "openai": _hosted("OpenAI, chat completions", "openai", "OPENAI_API_KEY", "gpt-4.1-mini"),
    "openai-responses": _hosted("OpenAI, responses", "openai-responses", "OPENAI_API_KEY", "gpt-4.1-mini"),
    "anthropic": _hosted("Anthropic, messages", "anthropic", "ANTHROPIC_API_KEY", "claude-haiku-4-5"),
    "google": _hosted("Google, Gemini API", "google", "GEMINI_API_KEY", "gemini-2.5-flash"),
    "azure": _hosted(
        "Azure OpenAI",
        "azure-openai",
        "AZURE_OPENAI_API_KEY",
        PLACEHOLDER,
        "  # The API version that your resource has; leave it out for the v1 API.\n  # api_version: 2024-10-21\n",
        "https://my-resource.openai.azure.com",
    ),
    "cohere": _hosted("Cohere, chat v2", "cohere", "CO_API_KEY", "command-a-03-2025"),
    "vllm": _own("vLLM", 8000, _METRICS + _MADE_TO_LENGTH),
    "sglang": _own("SGLang (its /metrics page needs --enable-metrics)", 30000, _METRICS + _MADE_TO_LENGTH),
    "tgi": _own("text-generation-inference", 8080, _METRICS),
    "llama.cpp": _own("llama.cpp's llama-server (its /metrics page needs --metrics)", 8080, _METRICS),
    "ollama": _own("Ollama", 11434),
    "lmstudio": _own("LM Studio", 1234),
    "generic": _own("any server that speaks OpenAI's API", 8000),
}

HEAD: Final = """# {about}. Written by `lens init {name}`.
#   lens validate {file}    checks this plan and says what it will do, and what it may cost
#   lens run {file}         measures; the results are in runs/latest
# All keys: REFERENCE.md, or `lens schema plan` for an editor that checks YAML as you type.
name: {title}

target:
  name: {title}
"""

BODY: Final = f"""
workload:
  # Made-up prompts, different in every run, so that no cache of an earlier run answers. Instead of them:
  #   prompt: "one text for all"    file: prompts.jsonl    sharegpt: ShareGPT.json    trace: mooncake.jsonl
  #   sessions: chats.jsonl
  synthetic:
    input_tokens: {{mean: {PROMPT_TOKENS}, stddev: 150}}
    output_tokens: {REPLY_TOKENS}

phases:
  # The first requests of a server are slower; they are sent and not counted.
  - {{name: warmup, requests: {{warmup}}, load: {{concurrency: {{concurrency}}}}, measure: false}}
  # Closed loop: so many requests in flight, the next one starts when another ends.
  - {{name: steady, {{end}}, load: {{concurrency: {{concurrency}}}}}}
  # Open loop: requests arrive at a rate, whatever the server does. This is what users do to it.
  # - {{name: arrivals, duration: 5m, load: {{rate: 2, arrivals: poisson, max_in_flight: 200}}}}
  # A ramp, or steps, to find where it breaks:
  # - {{name: ramp, duration: 5m, load: {{rate: {{from: 1, to: 20}}}}}}
  # - {{name: steps, load: {{concurrency: {{steps: [[1, 1m], [8, 1m], [32, 1m]]}}}}}}

limits:
  timeout: 120s                 # of one request
  max_error_rate: 0.5           # stop when more than half of the requests of the last 10 s failed
{{limits}}
# What has to hold; one that does not is exit code 3. Put your own numbers here.
# slo:
#   - ttft_ms.p95 <= 1000
#   - error_rate <= 0.01
#   - "request [99%]: ttft_ms <= 2000 and tpot_ms <= 50"

# Where the time series goes beside the run directory:
# export:
#   influxdb: {{url: "http://127.0.0.1:8086", org: my-org, bucket: lens, token: "${{INFLUX_TOKEN}}"}}
#   prometheus: {{url: "prometheus://:9464"}}
"""
_HOSTED_LIMITS: Final = """  budget_usd: 1                 # the run stops before its requests cost more
  rpm: 500                      # stay below the provider's own limits: 429 answers measure nothing
  tpm: 200000
"""


@click.command()
@click.argument("what", metavar="[PROVIDER|URL]", required=False)
@click.argument("file", required=False)
@click.option("--model", metavar="NAME", help="The model to ask for. [default: for servers the first that they list]")
def init(what: str | None, file: str | None, model: str | None) -> None:
    """Write a commented plan for a provider, or for the OpenAI-compatible API at a URL.

    FILE is PROVIDER.yaml unless it is given; - is stdout. A file that exists is left alone. Without PROVIDER: the list.
    """
    if what is None:
        for name, template in TEMPLATES.items():
            click.echo(f"{name:17} {template.about}")
        return
    name, template = _template(what)
    path = file or f"{name.replace('.', '-')}.yaml"
    found = _server(template) if template.lists_models else None
    text = plan_text(name, template, found, model, "plan.yaml" if path == "-" else path)
    if path == "-":
        click.echo(text, nl=False)
        return
    _write(Path(path), text)
    for line in _next_steps(path, template, found, model):
        click.echo(line, err=True)


def plan_text(name: str, template: Template, found: Found | None, model: str | None, file: str) -> str:
    """The plan file of a template; the model is the given one, else one that the server lists, else an example."""
    title = name.replace(".", "-")
    chosen = model or (found.models[0] if found and found.models else template.model)
    lines = [HEAD.format(about=template.about, name=name, file=file, title=title), template.target]
    base_url = found.base_url if found else template.base_url
    lines += [f"  base_url: {_quoted(base_url)}\n"] if base_url else []
    hint = "  # put the name of your model or deployment here" if chosen == PLACEHOLDER else ""
    lines.append(f"  model: {_quoted(chosen)}{hint}\n")
    values = {
        "warmup": "4" if template.hosted else "16",
        "concurrency": "4" if template.hosted else "8",
        "end": "requests: 100" if template.hosted else "duration: 60s",
        "limits": _HOSTED_LIMITS if template.hosted and chosen != PLACEHOLDER else "",
    }
    body = BODY
    for key, value in values.items():
        body = body.replace(f"{{{key}}}", value)
    return "".join(lines) + body


def _quoted(model: str) -> str:
    """A YAML double-quoted scalar: model names hold colons and slashes."""
    return '"' + model.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _template(what: str) -> tuple[str, Template]:
    """A template by its name, or one for a URL. Raises PlanError."""
    if what in TEMPLATES:
        return what, TEMPLATES[what]
    if "://" in what or what.rpartition(":")[2].partition("/")[0].isdigit():
        base = base_urls(what)[0]
        return "generic", TEMPLATES["generic"]._replace(about=f"The API at {base}", base_url=base)
    near = difflib.get_close_matches(what, TEMPLATES, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise PlanError(f"{what!r} is no provider{hint} There are {', '.join(TEMPLATES)}, or give a URL")


def _server(template: Template) -> Found:
    """What answers at the template's URL; without models where nothing does: a plan can be written before its server runs."""
    answer = models_at(template.base_url)
    return answer if isinstance(answer, Found) else Found(template.base_url)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as plan:
            plan.write(text)
    except FileExistsError:
        raise PlanError(f"{path} exists and is left alone; name another file, or - for stdout") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def _next_steps(path: str, template: Template, found: Found | None, model: str | None) -> list[str]:
    lines = [f"{path} is written; next: lens validate {path}"]
    if found and found.models:
        lines.append(f"its server lists {', '.join(found.models[:5])}")
    elif template.model == PLACEHOLDER and not model:
        lines.append("put the name of your model into it: nothing there lists its models now")
    return lines
