from __future__ import annotations

from pathlib import Path

import pytest

from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from llm_latency_lens.engine.runs.ports import PortWatch, available, foreseen
from tests.support_lens import lens
from tests.support_simulator import FAST, simulator

HOSTED = "https://api.example.com/v1"
LOCAL = "http://127.0.0.1:9/v1"


def machine(folder: Path, *, reuse: int = 2, inuse: int = 20, waiting: int = 0, six: int = 0) -> Path:
    """A /proc with 10,000 local ports."""
    for name, text in {
        "sys/net/ipv4/ip_local_port_range": "30001\t40000\n",
        "sys/net/ipv4/tcp_tw_reuse": f"{reuse}\n",
        "net/sockstat": f"sockets: used 99\nTCP: inuse {inuse} orphan 0 tw {waiting} alloc 9 mem 1\nUDP: inuse 2 mem 1\n",
        "net/sockstat6": f"TCP6: inuse {six}\nUDP6: inuse 1\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def plan(base_url: str, load: dict[str, float], *, fresh: bool = True, others: int = 0) -> Plan:
    target = {"name": "t", "base_url": base_url, "model": "m", "fresh_connections": fresh}
    extra = [{"name": f"o{k}", "base_url": base_url, "model": "m"} for k in range(others)]
    return make_plan({"targets": [target, *extra], "load": load, "duration": "5m"}, Source(), {})


@pytest.mark.parametrize(
    ("base_url", "load", "fresh", "others", "reuse", "number"),
    [
        (HOSTED, {"rate": 200}, True, 0, 2, "12,000"),
        (HOSTED, {"rate": 200}, True, 0, 1, None),  # taken again after a second
        (HOSTED, {"rate": 200}, False, 0, 2, None),
        (HOSTED, {"rate": 200}, True, 1, 2, None),  # half of them go elsewhere
        (LOCAL, {"rate": 200}, True, 0, 2, None),
        (LOCAL, {"rate": 200}, True, 0, 0, "12,000"),
        (LOCAL, {"rate": 9_000}, True, 0, 2, "9,000"),
        (HOSTED, {"concurrency": 9_000}, False, 0, 2, "9,000"),
        (HOSTED, {"concurrency": 900}, True, 0, 2, None),
    ],
)
def test_a_load_that_will_run_out_of_ports_is_seen_coming(
    base_url: str, load: dict[str, float], fresh: bool, others: int, reuse: int, number: str | None, tmp_path: Path
) -> None:
    warnings = foreseen(plan(base_url, load, fresh=fresh, others=others), machine(tmp_path, reuse=reuse))
    if number is None:
        assert warnings == []
    else:
        [warning] = warnings
        assert f"will want {number} local ports" in warning
        assert "there are 10,000; widen net.ipv4.ip_local_port_range" in warning


def test_ports_that_run_out_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("llm_latency_lens.engine.runs.ports.monotonic", lambda: now[0])
    watch = PortWatch(plan(HOSTED, {"rate": 1}), machine(tmp_path))
    told = []
    for waiting in (0, 7_000, 7_990, 9_000):
        machine(tmp_path, waiting=waiting, six=5)
        now[0] += 2
        told.append(watch.look())
    assert told[:2] == [None, None]
    assert told[2] is not None
    assert told[2].startswith("8,015 of 10,000 local ports are taken")
    assert told[3] is None


def test_ports_in_time_wait_take_no_room_where_they_are_used_again(tmp_path: Path) -> None:
    assert PortWatch(plan(LOCAL, {"rate": 1}), machine(tmp_path, waiting=9_999)).look() is None


def test_a_machine_that_tells_nothing_is_no_reason_to_stop(tmp_path: Path) -> None:
    assert foreseen(plan(HOSTED, {"rate": 200}), tmp_path) == []
    assert PortWatch(plan(HOSTED, {"rate": 200}), tmp_path).look() is None


def test_this_machine_can_be_read() -> None:
    assert 1_000 < available() < 65_536
    assert PortWatch(plan(LOCAL, {"rate": 1})).taken() > 0


def test_validate_and_run_say_it_before_the_load(tmp_path: Path) -> None:
    rate = 2 * available()
    (tmp_path / "plan.yaml").write_text(
        f"target: {{base_url: '{LOCAL}', model: m, fresh_connections: true}}\nload: {{rate: {rate}}}\nduration: 1s\n"
    )
    assert (
        f"warning: target '127.0.0.1' will want {rate:,} local ports"
        in lens("validate", "plan.yaml", cwd=tmp_path).stdout
    )


def test_a_connection_lives_no_longer_than_its_age(tmp_path: Path) -> None:
    with simulator(**FAST) as sim:
        (tmp_path / "plan.yaml").write_text(
            f"target: {{base_url: '{sim.base_url}/v1', model: m, max_connection_age: 300ms}}\n"
            "load: {concurrency: 1}\nduration: 2s\n"
        )
        summary = lens("run", "plan.yaml", "--json", cwd=tmp_path).summary
        connections = {row["connection"] for row in sim.log()}
    assert summary["requests"]["ok"] == summary["requests"]["sent"]
    assert 4 <= len(connections) <= 7
    assert summary["metrics"]["tcp_ms"]["count"] == len(connections)
