"""What a simulator answers to GET: /stats, /metrics (names as vLLM has them), /healthz, /v1/models."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from .framing import json_page, text_page
from .providers.provider import CREATED
from .script import Script
from .stats import SLOT, Stats

CACHE_CAPACITY: Final = 256  # running requests that would fill the KV cache, where there is no concurrency limit
NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def answer(script: Script, stats: Stats, url: bytes) -> bytes:
    """The reply to a GET, head included; pages are never logged as requests."""
    path = url.decode("latin-1").partition("?")[0]
    if path == "/stats":
        stats.mine[SLOT["cpu_ns"]] = time.process_time_ns()
        return json_page(stats.totals() | {"pid": os.getpid()})
    if path == "/metrics":
        capacity = (script.concurrency or CACHE_CAPACITY) * stats.processes
        return text_page(metrics(stats, capacity).encode(), "text/plain; version=0.0.4; charset=utf-8")
    if path in ("/v1/models", "/openai/v1/models"):
        return json_page(models(script.models))
    if path in ("/healthz", "/health", "/"):
        return json_page({"status": "ok"})
    return NOT_FOUND


def models(names: tuple[str, ...]) -> dict[str, Any]:
    """The list of models, as OpenAI's API returns it."""
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
