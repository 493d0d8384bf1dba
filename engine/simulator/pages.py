"""What a simulator answers to GET: /stats, /metrics (names as vLLM has them), /healthz, /v1/models."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from .heads import json_page, text_page
from .providers import CREATED
from .stats import SLOT, Stats

if TYPE_CHECKING:
    from .admission import Admission
    from .connection import Connection, Request

CACHE_CAPACITY: Final = 256  # running requests that would fill the KV cache, where there is no concurrency limit


def answer(admission: Admission, connection: Connection, request: Request) -> None:
    """Answers a GET; the page is never logged as a request."""
    path = request.url.decode("latin-1").partition("?")[0]
    stats = admission.stats
    if path == "/stats":
        stats.mine[SLOT["cpu_ns"]] = time.process_time_ns()
        reply = json_page(stats.totals() | {"pid": os.getpid()})
    elif path == "/metrics":
        capacity = (admission.script.concurrency or CACHE_CAPACITY) * stats.processes
        reply = text_page(metrics(stats, capacity).encode(), "text/plain; version=0.0.4; charset=utf-8")
    elif path in ("/v1/models", "/openai/v1/models"):
        reply = json_page(models(admission.script.models))
    elif path in ("/healthz", "/health", "/"):
        reply = json_page({"status": "ok"})
    else:
        reply = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    connection.send(reply)
    if request.keep_alive:
        connection.done()
    else:
        connection.finish()


def models(names: tuple[str, ...]) -> dict[str, Any]:
    """The list of models, as OpenAI's API gives it."""
    rows = [{"id": name, "object": "model", "created": CREATED, "owned_by": "lens-simulator"} for name in names]
    return {"object": "list", "data": rows}


def metrics(stats: Stats, capacity: int) -> str:
    """The Prometheus page of a simulated vLLM."""
    running = stats.total("running")
    used = min(1.0, running / capacity)
    rows = (
        ("vllm:num_requests_running", "gauge", running),
        ("vllm:num_requests_waiting", "gauge", stats.total("waiting")),
        ("vllm:gpu_cache_usage_perc", "gauge", used),
        ("vllm:kv_cache_usage_perc", "gauge", used),
        ("vllm:prompt_tokens_total", "counter", stats.total("prompt_tokens")),
        ("vllm:generation_tokens_total", "counter", stats.total("tokens")),
        ("vllm:request_success_total", "counter", stats.total("completed")),
    )
    label = '{model_name="sim",engine="0"}'
    return "".join(f"# TYPE {name} {kind}\n{name}{label} {value}\n" for name, kind, value in rows)
