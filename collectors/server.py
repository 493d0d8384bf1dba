"""The inference server's own view: its Prometheus page, and its GPUs', read beside the run into names common to all.

Known are vLLM, SGLang, Text Generation Inference, llama.cpp and NVIDIA's DCGM exporter. One thread reads one page; a page
that hangs or fails costs nothing but itself and is counted. Pages are read before and after each measured part of a run,
and in an interval of their own between: once a second costs a server on one core 2 to 5 %.
"""

from __future__ import annotations

import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from math import inf
from time import monotonic, monotonic_ns
from typing import Final, NamedTuple

import msgspec

from ..engine.plan.plan import SECOND, Plan
from ..engine.runs.manifest import PhaseTimes
from .server_window import STARTED, PageWindow, window_of
from .snapshot import Server, ServerWindow

TIMEOUT_S: Final = 5.0
FINISH_S: Final = 2.0  # a page that hangs delays a run's end by no more
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


class Total(NamedTuple):
    """A counter of collectors.server_window that a sample adds to; `label` and `value` choose its series."""

    name: str
    label: str = ""
    value: str = ""


class Reading(NamedTuple):
    """One page at one moment."""

    now: dict[str, float]  # members of Server
    totals: dict[str, float]  # by the names of collectors.server_window


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


def _histogram(family: str, part: str, label: str = "", value: str = "") -> dict[str, tuple[Total, ...]]:
    return {f"{family}_{end}": (Total(f"{part}_{end}", label, value),) for end in ("sum", "count")}


_QUERIES: Final = Total("prefix_cache_queries")
_HITS: Final = Total("prefix_cache_hits")
_PREEMPTIONS: Final = Total("preemptions")
TOTALS: Final[dict[str, tuple[Total, ...]]] = {
    **_histogram("vllm:time_to_first_token_seconds", "ttft"),
    **_histogram("vllm:request_queue_time_seconds", "queue"),
    **_histogram("vllm:request_prefill_time_seconds", "prefill"),
    **_histogram("vllm:request_decode_time_seconds", "decode"),
    "vllm:prefix_cache_queries_total": (_QUERIES,),  # tokens
    "vllm:prefix_cache_hits_total": (_HITS,),
    "vllm:gpu_prefix_cache_queries_total": (_QUERIES,),  # before 0.10
    "vllm:gpu_prefix_cache_hits_total": (_HITS,),
    "vllm:num_preemptions_total": (_PREEMPTIONS,),
    **_histogram("sglang:time_to_first_token_seconds", "ttft"),
    **_histogram("sglang:queue_time_seconds", "queue"),
    **_histogram("sglang:per_stage_req_latency_seconds", "prefill", "stage", "prefill_forward"),
    "sglang:prompt_tokens_total": (_QUERIES,),
    "sglang:cached_tokens_total": (_HITS,),
    "sglang:num_retracted_requests_total": (_PREEMPTIONS,),
    **_histogram("tgi_request_queue_duration", "queue"),
    **_histogram("tgi_batch_inference_duration", "prefill", "method", "prefill"),  # of batches, which requests share
    # No counts of requests: sums only.
    "llamacpp:prompt_seconds_total": (Total("prefill_sum"),),
    "llamacpp:tokens_predicted_seconds_total": (Total("decode_sum"),),
    "llamacpp:prompt_tokens_total": (_QUERIES,),  # without the cached ones
    "llamacpp:prompt_tokens_cached_total": (_QUERIES, _HITS),
    "process_start_time_seconds": (Total(STARTED),),
}


def read_page(text: str) -> Reading:
    """What a Prometheus page says in names common to all servers. Raises ValueError for what is no such page."""
    from prometheus_client.parser import text_string_to_metric_families

    series: dict[str, list[float]] = {}
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.value != sample.value:  # NaN
                continue
            if sample.name in FAMILIES:
                series.setdefault(sample.name, []).append(float(sample.value))
            for total in TOTALS.get(sample.name, ()):
                if not total.label or sample.labels.get(total.label) == total.value:
                    totals[total.name] = totals.get(total.name, 0.0) + float(sample.value)
    known = {name: FAMILIES[name] for name in series}
    return Reading({each.member: each.reduce(series[name]) * each.scale for name, each in known.items()}, totals)


class Page:
    """One page, read by a thread of its own: at once, whenever it is asked to be, and in each interval if there is one."""

    def __init__(self, url: str, interval_s: float) -> None:
        self.url = url
        self.failures = 0
        self.read: dict[str, float] = {}
        self.read_at: float | None = None
        self.readings: deque[tuple[int, int, Reading | None]] = deque()  # (number, time begun, None if it failed)
        self._interval_s = interval_s
        self._wanted = 1
        self._done = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"scrape {url}", daemon=True)
        self._thread.start()

    def ask(self) -> int:
        """Has the page read now; returns the number that the reading will have at least."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()
            return self._wanted

    def wait(self, number: int, timeout_s: float) -> None:
        """Until the reading `number` is in `readings`, at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self.readings) and self.readings[-1][0] >= number, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed:
            number, began_ns = self._wanted, monotonic_ns()
            reading = self._reading()
            with self._changed:
                self.readings.append((number, began_ns, reading))
                self._done = number
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._wanted > self._done, self._interval_s or None)

    def _reading(self) -> Reading | None:
        try:
            with urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as reply:
                reading = read_page(reply.read(PAGE_MAX_BYTES).decode("utf-8", "replace"))
        except (OSError, ValueError, HTTPException):
            self.failures += 1
            return None
        self.read, self.read_at = reading.now, monotonic()
        return reading


class Servers:
    """The pages of all targets that name some: what they said last, and how their counters grew in the measured part.

    Nothing here waits for a page but `finish`, at most FINISH_S.
    """

    def __init__(self, plan: Plan, windows: Mapping[str, PageWindow] | None = None) -> None:
        self._measured = [phase.measure for phase in plan.phases]
        intervals: dict[str, float] = {}
        for target in plan.targets:
            for url in target.metrics_urls:
                interval_s = target.metrics_interval_ns / SECOND
                intervals[url] = min(interval_s or inf, intervals.get(url, inf))
        self.windows = {url: PageWindow() for url in intervals} | dict(windows or {})
        self._measuring = any(window.open for window in self.windows.values())
        pages = {url: Page(url, 0.0 if every == inf else every) for url, every in sorted(intervals.items())}
        self._all = pages
        # The first reading is there before the first phase: a run without a warm-up needs no other.
        self._boundary = dict.fromkeys(pages, 0 if self._measuring else 1)
        self._pages = {
            target.name: [pages[url] for url in target.metrics_urls] for target in plan.targets if target.metrics_urls
        }

    def __call__(self) -> dict[str, Server]:
        return {name: server_of(pages, monotonic()) for name, pages in self._pages.items()}

    def follow(self, phases: Sequence[PhaseTimes], now_ns: int) -> None:
        """Called often: has the pages read where a measured part begins or ends, and takes in what has been read."""
        if not self._all:
            return
        begun = [i for i, times in enumerate(phases) if 0 < times.start_ns <= now_ns]
        measuring = bool(begun) and self._measured[begun[-1]]
        if measuring != self._measuring:
            if begun[-1:] != [0]:
                self._boundary = {url: page.ask() for url, page in self._all.items()}
            self._measuring = measuring
        self._take_in()

    def finish(self, *, late: bool) -> None:
        """The run is over: the last reading, for which this waits. `late`: it has been over for long (`lens recover`)."""
        self._take_in()
        for window in self.windows.values():
            if self._measuring and not window.open:  # its first reading has not come in all this time
                window.begin(None, monotonic_ns())
        if late or not any(window.open for window in self.windows.values()):
            self._give_up()
            return
        until = monotonic() + FINISH_S
        self._boundary = {url: page.ask() for url, page in self._all.items()}
        self._measuring = False
        for url, page in self._all.items():
            page.wait(self._boundary[url], max(0.0, until - monotonic()))
        self._take_in()
        self._give_up()

    def _give_up(self) -> None:
        for window in self.windows.values():
            if window.open:
                window.end(None, monotonic_ns())

    def window(self, target: str) -> ServerWindow | None:
        """How the counters of a target's pages grew in the measured part; None without pages, or before it is over."""
        return window_of(self.windows[page.url] for page in self._pages.get(target, ()))

    def _take_in(self) -> None:
        for url, page in self._all.items():
            window = self.windows[url]
            while page.readings:
                # Begun before the phase was seen to begin, it waits here until that is known.
                number, began_ns, reading = page.readings[0]
                totals = None if reading is None else reading.totals
                if number >= self._boundary[url] and self._measuring != window.open:
                    (window.begin if self._measuring else window.end)(totals, began_ns)
                elif window.open and totals is not None:
                    window.see(totals)
                elif not window.open and not self._measuring and len(page.readings) == 1:
                    break
                page.readings.popleft()

    def close(self) -> None:
        for page in self._all.values():
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
