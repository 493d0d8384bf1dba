"""Load hosts on Ray: which nodes are taken, what people read when there are none, and a run on a local cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_latency_lens.engine.errors import LensError
from llm_latency_lens.engine.hosts.launch import LaunchOrder, nodes_for
from tests.support_hosts import rows_of_hosts
from tests.support_lens import accounts, finish, lens, manifest_of, running
from tests.support_simulator import FAST, simulator

KEY = "sk-ray-4711-secret"


def node(name: str, cpus: float, *, alive: bool = True, **labels: str) -> dict[str, Any]:
    """A row of ray.nodes()."""
    resources = {"CPU": cpus, "memory": 1e9} if cpus else {"memory": 1e9}
    known = {"NodeID": f"id-{name}", "NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1"}
    return known | {"Alive": alive, "Resources": resources, "Labels": labels}


def order(count: int, **labels: str) -> LaunchOrder:
    return LaunchOrder(count=count, address="auto", cpus=None, labels=labels)


def test_the_largest_nodes_that_have_the_labels_are_taken() -> None:
    """A host has the workers that its cores allow; the nodes with the GPUs have other labels."""
    found = [
        node("small", 2, pool="load"),
        node("gpu", 64, pool="gpu"),
        node("dead", 32, alive=False, pool="load"),
        node("head", 0, pool="load"),
        node("large", 16, pool="load"),
        node("middle", 8, pool="load"),
    ]
    assert [each.name for each in nodes_for(order(2, pool="load"), found)] == ["large", "middle"]
    assert [each.cpus for each in nodes_for(order(1), found)] == [64]


def test_too_few_nodes_are_an_error_that_names_those_there_are() -> None:
    """Ray itself would wait for ever for a node that nobody starts."""
    found = [node("one", 4, pool="load"), node("gpu", 64)]
    with pytest.raises(
        LensError, match=r"2 hosts need 2 Ray nodes with the labels .*the cluster has 1: one \(4 CPUs\)"
    ):
        nodes_for(order(2, pool="load"), found)


def test_without_ray_the_message_says_what_to_install() -> None:
    """Ray is an extra: the core package must come this far without it."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from llm_latency_lens.engine.hosts.launch import LaunchOrder, cluster\n"
        "with cluster(LaunchOrder(count=2, address='auto', cpus=None, labels={})): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "PlanError: --cluster ray needs Ray: pip install 'llm-latency-lens[ray]'" in done.stderr


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line with the address and the way out, and nothing is left of the run."""
    arguments = ("--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--hosts", "2")
    ended = lens("run", *arguments, "--cluster", "ray:ray://10.0.0.1:10001", cwd=tmp_path)
    assert ended.code == 2
    assert "Ray Client (ray://) cannot be used" in ended.stderr
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_of_a_local_cluster_make_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's count, the books and the rows of the hosts agree; no process stays, and no argument has the key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "key").write_text(KEY)
    with simulator(**FAST) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--api-key-file", "key")
        load = ("--rate", "40", "--duration", "3s", "--output-tokens", "6", "--hosts", "2", "--cluster", "ray:local")
        with running(*arguments, *load, cwd=tmp_path) as process:
            manifest_of(tmp_path, timeout=120)
            started = psutil.Process(process.pid).children(recursive=True)
            commands = [each.cmdline() for each in started]
            ended = finish(process, timeout=90)
        assert len(sim.log(120)) == 120
    assert ended.code == 0, ended.stderr
    summary = ended.summary
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 120
    assert [host["state"] for host in summary["run"]["hosts"]] == ["done", "done"]
    run_dir = (tmp_path / "runs" / "latest").resolve()
    assert sorted(row["request"] for row in rows_of_hosts(run_dir)) == list(range(120))
    assert any("raylet" in command[0] for command in commands if command)
    assert not [command for command in commands if KEY in " ".join(command)]
    left = [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not psutil.wait_procs(left, timeout=30)[1]
    texts = [path for path in run_dir.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not texts
