"""The inference server's own view: its Prometheus page, and its GPUs', read beside the run into names common to all.

Known are vLLM, SGLang, Text Generation Inference, llama.cpp and NVIDIA's DCGM exporter. One thread reads one page; a page
that hangs or fails costs nothing but itself and is counted. Pages are read at most once in a second.
"""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final, NamedTuple

import msgspec

from ..engine.plan.plan import SECOND, Plan
from .snapshot import Server

TIMEOUT_S: Final = 5.0
INTERVAL_MIN_S: Final = 1.0
PAGE_MAX_BYTES: Final = 16 << 20
MEBI: Final = float(1 << 20)

Reduce = Callable[[list[float]], float]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Known(NamedTuple):
    """How one sample family counts: which member of Server it is, how its series are put together, its scale."""

    member: str
    reduce: Reduce
    scale: float = 1.0


FAMILIES: Final[dict[str, Known]] = {
    # vLLM, https://docs.vllm.ai/en/latest/design/metrics.html
    "vllm:num_requests_running": Known("requests_running", sum),
    "vllm:num_requests_waiting": Known("requests_waiting", sum),
    "vllm:kv_cache_usage_perc": Known("kv_cache_usage", max),
    "vllm:gpu_cache_usage_perc": Known("kv_cache_usage", max),  # before 0.10
    "vllm:prompt_tokens_total": Known("prompt_tokens_total", sum),
    "vllm:generation_tokens_total": Known("generation_tokens_total", sum),
    # SGLang, https://docs.sglang.ai/references/production_metrics.html
    "sglang:num_running_reqs": Known("requests_running", sum),
    "sglang:num_queue_reqs": Known("requests_waiting", sum),
    "sglang:token_usage": Known("kv_cache_usage", max),
    "sglang:prompt_tokens_total": Known("prompt_tokens_total", sum),
    "sglang:generation_tokens_total": Known("generation_tokens_total", sum),
    # Text Generation Inference, https://huggingface.co/docs/text-generation-inference/reference/metrics
    "tgi_batch_current_size": Known("requests_running", sum),
    "tgi_queue_size": Known("requests_waiting", sum),
    "tgi_request_input_length_sum": Known("prompt_tokens_total", sum),
    "tgi_request_generated_tokens_sum": Known("generation_tokens_total", sum),
    # llama.cpp, https://github.com/ggml-org/llama.cpp/tree/master/tools/server
    "llamacpp:requests_processing": Known("requests_running", sum),
    "llamacpp:requests_deferred": Known("requests_waiting", sum),
    "llamacpp:kv_cache_usage_ratio": Known("kv_cache_usage", max),
    "llamacpp:prompt_tokens_total": Known("prompt_tokens_total", sum),
    "llamacpp:tokens_predicted_total": Known("generation_tokens_total", sum),
    # DCGM exporter, https://docs.nvidia.com/datacenter/dcgm/latest/gpu-telemetry/dcgm-exporter.html
    "DCGM_FI_DEV_GPU_UTIL": Known("gpu_utilisation", mean, 0.01),
    "DCGM_FI_DEV_FB_USED": Known("gpu_memory_bytes", sum, MEBI),
    "DCGM_FI_DEV_POWER_USAGE": Known("gpu_power_watts", sum),
    "DCGM_FI_DEV_GPU_TEMP": Known("gpu_temperature_c", max),
}


def read_page(text: str) -> dict[str, float]:
    """The members of Server that a Prometheus page knows. Raises ValueError for what is no such page."""
    from prometheus_client.parser import text_string_to_metric_families

    series: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in FAMILIES and sample.value == sample.value:  # not NaN
                series.setdefault(sample.name, []).append(float(sample.value))
    return {
        FAMILIES[name].member: FAMILIES[name].reduce(values) * FAMILIES[name].scale for name, values in series.items()
    }


class Page:
    """One page, read again and again by a thread of its own."""

    def __init__(self, url: str, interval_s: float) -> None:
        self.url = url
        self.failures = 0
        self.read: dict[str, float] = {}
        self.read_at: float | None = None
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"scrape {url}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while True:
            try:
                with urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as reply:
                    self.read = read_page(reply.read(PAGE_MAX_BYTES).decode("utf-8", "replace"))
                self.read_at = monotonic()
            except (OSError, ValueError):
                self.failures += 1
            if self._stop.wait(self._interval_s):
                return


class Servers:
    """The pages of all targets that name some. Calling it returns what they said last, and never waits."""

    def __init__(self, plan: Plan) -> None:
        interval_s = max(INTERVAL_MIN_S, plan.output.tick_ns / SECOND)
        urls = {url for target in plan.targets for url in target.metrics_urls}
        pages = {url: Page(url, interval_s) for url in sorted(urls)}
        self._pages = {
            target.name: [pages[url] for url in target.metrics_urls] for target in plan.targets if target.metrics_urls
        }

    def __call__(self) -> dict[str, Server]:
        return {name: server_of(pages, monotonic()) for name, pages in self._pages.items()}

    def close(self) -> None:
        for pages in self._pages.values():
            for page in pages:
                page.close()


def server_of(pages: Iterable[Page], now: float) -> Server:
    """What the pages of one target say together."""
    server = Server()
    for page in pages:
        server = msgspec.structs.replace(server, **page.read)
        server.scrape_failures += page.failures
        if page.read_at is not None:
            server.age_s = max(server.age_s or 0.0, round(now - page.read_at, 3))
    return server
