"""`output.token_times`: when each token of a request arrived, in requests.msgpack and Parquet, against the server's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from llm_latency_lens.exporters.token_times import chooser
from tests.support_lens import lens, measured
from tests.support_simulator import simulator

pytestmark = pytest.mark.slow

TOKENS = 20
SCRIPT: dict[str, Any] = {"ttft_ms": 30, "itl_ms": "lognormal:5:0.3", "tokens": TOKENS}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("runs/2*/requests.msgpack")
    with path.open("rb") as file:
        return list(msgpack.Unpacker(file))


def run(folder: Path, url: str, setting: str, *arguments: str) -> list[dict[str, Any]]:
    plan = {"targets": [{"base_url": f"{url}/v1", "model": "m"}], "output": {"token_times": setting}}
    (folder / "plan.json").write_text(json.dumps(plan))
    measured("plan.json", "--workers", "1", *arguments, cwd=folder)
    return rows_of(folder)


def test_every_token_has_its_time(tmp_path: Path) -> None:
    """The times are those that the latencies were made of: first token, gaps and last token agree with the row, and with
    the server's own log."""
    with simulator(flags=("--log-tokens",), **SCRIPT) as sim:
        rows = run(tmp_path, sim.base_url, "all", "--requests", "20", "--concurrency", "1")
        log = [row for row in sim.log(20) if row["status"] == 200]
    assert len(rows) == 20
    for row, truth in zip(rows, log, strict=True):
        times, marks = row["token_ns"], row["token_coalesced"]
        assert len(times) == len(marks) == TOKENS
        assert times[0] / 1e6 == pytest.approx(row["ttft_ms"], abs=0.001)
        assert np.diff(times).max() / 1e6 == pytest.approx(row["itl_max_ms"], abs=0.001)
        assert times[-1] / 1e6 == pytest.approx(row["last_token_ms"] - row["send_ms"], abs=0.001)
        if not any(marks):
            expected = np.diff(truth["token_sent_ns"]) / 1e6
            assert np.median(np.abs(np.diff(times) / 1e6 - expected)) < 0.5


def test_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    """A long run's rows would grow by the number of its tokens."""
    with simulator(ttft_ms=2, itl_ms=1, tokens=4) as sim:
        rows = run(tmp_path, sim.base_url, "none", "--requests", "5")
    assert [row["token_ns"] for row in rows] == [None] * 5


def test_a_share_is_the_same_requests_for_a_seed() -> None:
    """Two runs can be compared token by token."""
    records = [{"phase": 0, "request": i} for i in range(5000)]
    first, second = chooser("10%", 7), chooser("0.1", 7)
    assert first is not None
    assert second is not None
    chosen = [first(record) for record in records]
    assert chosen == [second(record) for record in records]
    assert sum(chosen) == pytest.approx(500, abs=100)


def test_the_slowest_of_all_are_among_those_chosen() -> None:
    """A request is chosen when it ends, so some that later turn out faster are chosen too; none of the N is missed."""
    rng = np.random.default_rng(3)
    durations = rng.permutation(2000) + 1
    slowest = chooser("slowest:10", 0)
    assert slowest is not None
    chosen = {int(d) for d in durations if slowest({"send_ns": 0, "end_ns": int(d)})}
    assert {*range(1991, 2001)} <= chosen
    assert len(chosen) < 120


def test_parquet_has_the_times_as_lists(tmp_path: Path) -> None:
    """The format in which people load rows into a notebook."""
    parquet = pytest.importorskip("pyarrow.parquet")
    with simulator(ttft_ms=2, itl_ms=1, tokens=4) as sim:
        rows = run(tmp_path, sim.base_url, "all", "--requests", "5")
    (run_dir,) = tmp_path.glob("runs/2*")
    done = lens("report", str(run_dir), "--to", "parquet", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (path,) = tmp_path.rglob("*.parquet")
    table = parquet.read_table(path).to_pylist()
    assert [row["token_ns"] for row in table] == [row["token_ns"] for row in rows]
