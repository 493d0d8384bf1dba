"""The plans under examples/: each is right as it stands, and does against a simulator what its first lines say."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support_databases import free_port
from tests.support_lens import lens
from tests.support_simulator import Simulator, simulator

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
MANIFEST = EXAMPLES / "kubernetes-job.yaml"
RAY_JOB = EXAMPLES / "hosts-kuberay.yaml"
PLANS = sorted(path.stem for path in EXAMPLES.glob("*.yaml") if path not in (MANIFEST, RAY_JOB))
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "CO_API_KEY", "AZURE_OPENAI_API_KEY")
RUN = ["azure", "prometheus", "ramp", "sessions", "sharegpt", "slo-gate", "steps", "trace", "vllm"]  # others: below
ELSEWHERE = [  # test_providers; need a database, months, a cluster
    "compare", "ollama", "plain-json", "tgi", "influxdb", "probe", "hosts-ray",
]  # fmt: skip


def test_every_example_is_run_or_needs_a_real_service() -> None:
    """An example that no test knows breaks unseen, and it is the first thing that people copy."""
    assert sorted([*RUN, *ELSEWHERE]) == PLANS


@pytest.mark.parametrize("name", ["influxdb", "probe"])
def test_an_example_for_a_real_service_is_valid(name: str) -> None:
    """What cannot be run here in seconds is at least checked as `lens run` and `lens probe` would."""
    ended = lens("validate", str(EXAMPLES / f"{name}.yaml"), cwd=ROOT, env=dict.fromkeys(KEYS, "k"))
    assert ended.code == 0, ended.stderr
    assert "requests: " in ended.stdout


def shortened(text: str) -> str:
    """The plan with its times cut to tenths of a second; everything else as it stands."""
    text = re.sub(r"duration: \w+", "duration: 0.6s", text)
    text = re.sub(r"at: \w+, for: \w+", "at: 0.2s, for: 0.1s", text)
    return re.sub(r"\[(\d+), \d+s\]", r"[\1, 0.2s]", text)


def port_is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator(ttft_ms=2, itl_ms=0.2, tokens=20) as started:
        yield started


@pytest.fixture(scope="module")
def summaries(server: Simulator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The summary of each example's run, three at a time: most of a short run is the start of its processes."""
    port = free_port()
    environ = dict.fromkeys(KEYS, "k") | {
        "BASE_URL": f"{server.base_url}/v1",
        "METRICS_URL": f"{server.base_url}/metrics",
        "AZURE_OPENAI_ENDPOINT": server.base_url,
        "PROMETHEUS_PORT": str(port),
    }
    folders = [tmp_path_factory.mktemp(name) for name in RUN]
    for name, folder in zip(RUN, folders, strict=True):
        (folder / "examples").symlink_to(EXAMPLES)  # the data files are named as from the checkout
        (folder / "plan.yaml").write_text(shortened((EXAMPLES / f"{name}.yaml").read_text()))
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda folder: lens("run", "plan.yaml", "--json", cwd=folder, env=environ), folders))
    for name, ended in zip(RUN, results, strict=True):
        assert ended.code in (0, 3), (name, ended.stderr)  # the objectives are not this machine's
    assert not port_is_open(port)  # the page was the run's, and went with it
    return {name: ended.summary for name, ended in zip(RUN, results, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_an_example_measures(name: str, summaries: dict[str, dict[str, Any]]) -> None:
    """Every request that it sends is answered, and every phase that it measures has numbers."""
    summary = summaries[name]
    requests = summary["requests"]
    assert requests["ok"] > 0
    assert requests["failed"] == {}
    assert requests["ok"] + requests["cancelled"] + requests["in_flight_at_end"] == requests["sent"]
    for phase in summary["run"]["phases"]:
        assert phase["requests"]["sent"] > 0 or not phase["measured"], phase["name"]


@pytest.mark.slow
def test_the_examples_show_what_they_are_for(summaries: dict[str, dict[str, Any]]) -> None:
    """Loads, workloads and objectives are those that the comments promise."""
    loads = {name: {phase["load"] for phase in summaries[name]["run"]["phases"]} for name in RUN}
    assert (loads["ramp"], loads["trace"], loads["sessions"]) == ({"open"}, {"replay"}, {"partly_open"})
    assert summaries["trace"]["requests"]["sent"] == 6
    assert summaries["trace"]["run"]["duration_s"] < 2.1 * 0.5 + 10
    assert [phase["name"] for phase in summaries["steps"]["run"]["phases"]][1:4] == ["level-1", "level-4", "level-16"]
    assert len(summaries["slo-gate"]["slo"]) == 4
    assert summaries["azure"]["targets"][0]["provider"] == "azure-openai"


def test_the_kubernetes_job_runs_what_the_image_has() -> None:
    """Its command line, user and mounts are the image's; a manifest that drifts fails only in somebody's cluster."""
    claim, job = yaml.safe_load_all(MANIFEST.read_text())
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    image = (ROOT / "Containerfile").read_text()
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in image
    assert 'ENTRYPOINT ["/usr/bin/python3", "-m", "llm_latency_lens.cli"]' in image
    assert lens(*container["args"][:1], "--help", cwd=ROOT).code == 0
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": claim["metadata"]["name"]}]


def test_the_plans_of_many_hosts_are_right(tmp_path: Path) -> None:
    """They need a cluster; what can be wrong in them without one is seen here."""
    config, job = yaml.safe_load_all(RAY_JOB.read_text())
    assert job["spec"]["entrypoint"] == "lens run /plan/plan.yaml"
    (tmp_path / "plan.yaml").write_text(config["data"]["plan.yaml"])
    for plan in (str(tmp_path / "plan.yaml"), str(EXAMPLES / "hosts-ray.yaml")):
        checked = lens("validate", plan, cwd=tmp_path)
        assert checked.code == 0, checked.stderr
        assert "4 load hosts (ray)" in checked.stdout
