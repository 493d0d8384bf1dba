"""The server's own Prometheus pages beside the run: every known server's names, a real one, and pages that fail."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.collectors.server import read_page
from llm_latency_lens.collectors.snapshot import Server, Snapshot
from llm_latency_lens.exporters.influxdb import lines
from llm_latency_lens.exporters.prometheus_page import Page
from tests.support_lens import lens, measured
from tests.support_llama import llama_server
from tests.support_pages import pages
from tests.support_simulator import FAST, simulator

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 10437.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 2103.0
"""
SGLANG = """# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 162.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m"} 2826.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m"} 0.28
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 8.128902e+06
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="m"} 7.557572e+06
"""
TGI = """# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 5
# TYPE tgi_queue_size gauge
tgi_queue_size 2
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="+Inf"} 10
tgi_request_generated_tokens_sum 512
tgi_request_generated_tokens_count 10
"""
DCGM = """# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1",device="nvidia0"} 90
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-2",device="nvidia1"} 70
# TYPE DCGM_FI_DEV_FB_USED gauge
DCGM_FI_DEV_FB_USED{gpu="0"} 1024
DCGM_FI_DEV_FB_USED{gpu="1"} 2048
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0"} 300.5
DCGM_FI_DEV_POWER_USAGE{gpu="1"} NaN
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0"} 61
DCGM_FI_DEV_GPU_TEMP{gpu="1"} 66
"""
PAGES: list[tuple[str, str, dict[str, float]]] = [
    (
        "vllm",
        VLLM,
        {
            "requests_running": 12,
            "requests_waiting": 3,
            "kv_cache_usage": 0.75,
            "prompt_tokens_total": 10437,
            "generation_tokens_total": 2103,
        },
    ),
    (
        "sglang",
        SGLANG,
        {
            "requests_running": 162,
            "requests_waiting": 2826,
            "kv_cache_usage": 0.28,
            "prompt_tokens_total": 8128902,
            "generation_tokens_total": 7557572,
        },
    ),
    ("tgi", TGI, {"requests_running": 5, "requests_waiting": 2, "generation_tokens_total": 512}),
    (
        "dcgm",
        DCGM,
        {
            "gpu_utilisation": 0.8,
            "gpu_memory_bytes": 3 << 30,
            "gpu_power_watts": 300.5,
            "gpu_temperature_c": 66,
        },
    ),
    ("a page of something else", "# TYPE up gauge\nup 1\n", {}),
]


@pytest.mark.parametrize(("name", "text", "expected"), PAGES, ids=[row[0] for row in PAGES])
def test_a_page_is_read_into_common_names(name: str, text: str, expected: dict[str, float]) -> None:
    assert read_page(text).now == pytest.approx(expected)


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_page("<html>{ not a page")


def ticks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/latest/intervals.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_pages_stand_beside_the_ticks_and_bad_ones_harm_nothing(tmp_path: Path) -> None:
    hole = socket.create_server(("127.0.0.1", 0), backlog=8)  # takes the connection, answers nothing
    try:
        with simulator(**FAST) as sim, pages({"/vllm": VLLM, "/gpu": DCGM, "/bad": "{"}) as url:
            targets = {
                "good": [f"{url}/vllm", f"{url}/gpu"],
                "failing": f"{url}/gone",
                "broken": f"{url}/bad",
                "hung": f"http://127.0.0.1:{hole.getsockname()[1]}/metrics",
                "silent": None,
            }
            plan = {
                "targets": [
                    {"name": name, "base_url": f"{sim.base_url}/v1", "model": "m"} | ({"metrics_url": at} if at else {})
                    for name, at in targets.items()
                ],
                "load": {"rate": 50},
                "duration": "4s",
            }
            (tmp_path / "plan.json").write_text(json.dumps(plan))
            summary = measured("plan.json", cwd=tmp_path)
    finally:
        hole.close()
    assert summary["requests"]["ok"] == 200
    last = ticks(tmp_path)[-1]["servers"]
    assert set(last) == {"good", "failing", "broken", "hung"}
    assert (last["good"]["requests_running"], last["good"]["gpu_utilisation"]) == (12, pytest.approx(0.8))
    assert last["good"]["scrape_failures"] == 0
    assert last["good"]["age_s"] < 5
    assert last["failing"]["scrape_failures"] > 0
    assert last["broken"]["scrape_failures"] > 0
    assert last["hung"]["requests_running"] is None


@pytest.mark.slow
def test_llama_cpp_says_what_it_generated(tmp_path: Path) -> None:
    with llama_server(tmp_path) as url:
        plan = {
            "target": {"base_url": f"{url}/v1", "model": "m", "metrics_url": f"{url}/metrics"},
            "workload": {"prompt": "hello", "output_tokens": 16},
            "load": {"rate": 20},
            "duration": "4s",
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        summary = measured("plan.json", cwd=tmp_path)
    reported = [tick["servers"]["127.0.0.1"] for tick in ticks(tmp_path)]
    generated = [each["generation_tokens_total"] for each in reported if each["generation_tokens_total"] is not None]
    assert generated == sorted(generated)
    assert 0 < generated[-1] <= summary["tokens"]["output"]
    assert reported[-1]["requests_running"] is not None


def test_exporters_carry_them() -> None:
    tick = Snapshot(
        run="r", tick=0, wall_time_ns=10**18, elapsed_s=1, seconds=1, state="running", phase="p", in_flight=0,
        sent_total=0, ok_total=0, failed_total=0, unsent_total=0, planned_total=None,
        servers={"a b": Server(requests_waiting=3, gpu_utilisation=0.5)},
    )  # fmt: skip
    point = next(line for line in lines(tick, "n") if line.startswith("lens_server"))
    assert point == (
        r"lens_server,name=n,run=r,target=a\ b requests_waiting=3.0,gpu_utilisation=0.5,scrape_failures=0i"
        " 1000000000000000000"
    )
    totals = Page({}, "n")
    totals.add(tick)
    assert 'lens_server_requests_waiting{target="a b"} 3' in totals.text()
    assert "lens_server_requests_running{" not in totals.text()


def test_a_metrics_url_with_credentials_is_refused(tmp_path: Path) -> None:
    target = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "metrics_url": ["http://u:s3cret@127.0.0.1/metrics"]}
    (tmp_path / "plan.json").write_text(json.dumps({"target": target}))
    ended = lens("validate", "plan.json", cwd=tmp_path)
    assert ended.code == 2
    assert "metrics_url must not hold credentials" in ended.stderr
    assert "s3cret" not in ended.stderr
