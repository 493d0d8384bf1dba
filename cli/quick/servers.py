"""Finds LLM servers by their list of models, GET .../v1/models: it is free everywhere and starts no completion."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final, NamedTuple

from ...engine.errors import PlanError
from ...engine.plan.address import parse_url

WITHIN_S: Final = 2.0  # a local server that is busy still lists its models in milliseconds
ANSWER_MAX_BYTES: Final = 4 << 20  # OpenRouter's list has 400 kB
HOSTS: Final = ("127.0.0.1", "[::1]")
PORTS: Final = {  # the ports that servers listen on when nobody says otherwise
    8000: "vLLM, TensorRT-LLM, NIM",
    30000: "SGLang",
    8080: "llama.cpp, TGI, LocalAI",
    3000: "TGI",
    11434: "Ollama",
    1234: "LM Studio",
    5000: "text-generation-webui",
    5001: "KoboldCpp",
    23333: "LMDeploy",
    1337: "Jan",
    4000: "LiteLLM",
}
_ENDINGS: Final = ("/chat/completions", "/completions", "/models")  # what people copy from an example of a request


class Found(NamedTuple):
    """What answered: `base_url` ends where the API begins. `refused`: an HTTP status instead of a list."""

    base_url: str
    models: tuple[str, ...] = ()
    refused: int = 0
    kind: str = ""  # which server usually listens there


class Unreachable(NamedTuple):
    """Why a URL did not list models."""

    url: str
    why: str


def local_servers(ports: Mapping[int, str] = PORTS) -> list[Found]:
    """What lists models, or wants a key for it, on the usual loopback ports. One entry a port, IPv4 first."""
    urls = {f"http://{host}:{port}/v1": (port, kind) for port, kind in ports.items() for host in HOSTS}
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = dict(zip(urls, pool.map(lambda url: models_at(url, proxies={}), urls), strict=True))
    found: dict[int, Found] = {}
    for url, (port, kind) in urls.items():
        answer = answers[url]
        if isinstance(answer, Found) and (answer.models or answer.refused in (401, 403)):
            found.setdefault(port, answer._replace(kind=kind))
    return list(found.values())


def server_at(url: str, headers: Mapping[str, str], ca_file: str | None = None) -> Found | Unreachable:
    """What lists models at a URL as people write one: with or without scheme, /v1, or the path of a request.

    Of several places the last one says why there was none. Raises PlanError for what is no URL.
    """
    refused: Found | Unreachable | None = None
    for base in base_urls(url):
        answer = models_at(base, headers, ca_file)
        if isinstance(answer, Found) and (answer.models or answer.refused in (401, 403)):
            return answer
        refused = refused or answer
    assert refused is not None
    return refused


def base_urls(url: str) -> list[str]:
    """Where the API may begin, likeliest first."""
    text = url.strip().rstrip("/")
    text = text if "://" in text else f"http://{text}"
    for ending in _ENDINGS:
        text = text.removesuffix(ending)
    address = parse_url(text, what="the URL")
    if address.user is not None or address.query or "#" in text:  # not shown: people put keys there
        raise PlanError(
            "the URL must not hold credentials, a query or a fragment; name the key's variable: --api-key-env NAME"
        )
    return [text] if text.endswith("/v1") else [f"{text}/v1", text]


def models_at(
    base_url: str,
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
    *,
    proxies: dict[str, str] | None = None,
) -> Found | Unreachable:
    """The models that `base_url`/models lists. `proxies` by scheme; default: those of the environment."""
    url = f"{base_url}/models"
    request = urllib.request.Request(url, headers={"Accept": "application/json", **(headers or {})})
    try:
        handler = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirect(), handler)
        with opener.open(request, timeout=WITHIN_S) as reply:
            return _listed(base_url, url, reply)
    except urllib.error.HTTPError as error:
        with error:
            return Found(base_url, refused=error.code)
    except urllib.error.URLError as error:
        return Unreachable(url, _reason(error.reason))
    except (OSError, http.client.HTTPException) as error:
        return Unreachable(url, _reason(error))


def _listed(base_url: str, url: str, reply: IO[bytes]) -> Found | Unreachable:
    try:
        entries = json.loads(reply.read(ANSWER_MAX_BYTES))["data"]
        models = tuple(str(entry["id"]) for entry in entries)
    except (ValueError, KeyError, TypeError):
        return Unreachable(url, "the answer is no list of models")
    return Found(base_url, models) if models else Unreachable(url, "the list of models is empty: load a model first")


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {WITHIN_S:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None
