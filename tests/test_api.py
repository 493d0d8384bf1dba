"""The Python API as a user's program, test or notebook uses it: real runs against the built-in simulator."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

import llm_latency_lens
from llm_latency_lens import LensError, OutputError, Plan, PlanError, Summary, load, read_plan, run
from tests.support_lens import accounts, environment
from tests.support_plugins import install
from tests.support_simulator import FAST, Simulator, simulator

ROOT = Path(__file__).parent.parent
CHECKED = """
import pandas
import pyarrow
from llm_latency_lens import Plan, Summary, load, read_plan, run

def names(summary: Summary) -> list[str]:
    return [target.name for target in summary.targets]

plan: Plan = read_plan("plan.yaml", requests=10)
p99: float | None = run(plan).metrics["ttft_ms"].p99
table: pyarrow.Table = load("runs/latest").rows.to_arrow()
reveal_type(load("runs/latest").verdict.state)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator(**FAST) as running:
        yield running


@pytest.fixture(scope="module")
def plan(server: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("runs")
    return read_plan(
        {"target": {"base_url": f"{server.base_url}/v1", "model": "m"}, "output": {"dir": str(folder)}},
        requests=20,
        concurrency=4,
        workers=1,
    )


@pytest.fixture(scope="module")
def summary(plan: Plan) -> Summary:
    """One run for the tests that only read its result."""
    return run(plan)


def test_a_run_returns_what_its_files_say(plan: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    """One model of a result: the report's own structs, with rows and ticks beside them, and not a word printed."""
    summary = run(plan)
    assert capfd.readouterr() == ("", "")
    written = json.loads((summary.run_dir / "summary.json").read_text())
    accounts(written["requests"])
    assert summary.requests.ok == 20 == written["requests"]["ok"]
    assert summary.metrics["ttft_ms"].p50 == written["metrics"]["ttft_ms"]["p50"]
    assert summary.verdict.state == written["verdict"]["state"]
    assert len(list(summary.rows)) == 20
    assert sum(interval.requests.ok for tick in summary.ticks for interval in tick.intervals) == 20
    assert load(summary.run_dir).metrics == summary.metrics
    assert "20 ok of 20 sent" in repr(summary)
    summary.show()
    assert "TTFT" in capfd.readouterr().out


def test_rows_and_ticks_are_tables(summary: Summary) -> None:
    """The column types must not depend on which value the first request lacks."""
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    rows, ticks = summary.rows.to_arrow(), summary.ticks.to_arrow()
    assert rows.num_rows == 20
    assert rows.schema.field("ttft_ms").type == pyarrow.float64()
    assert rows.schema.field("unsent").type == pyarrow.string()
    assert rows.schema.field("text").type == pyarrow.string()
    assert ticks.schema.field("unsent").type == pyarrow.int64()
    assert sum(ticks.column("ok").to_pylist()) == 20
    pytest.importorskip("pandas", reason="the pandas extra is not installed")
    assert list(summary.rows.to_pandas().columns) == rows.schema.names
    assert summary.ticks.to_pandas()["ok"].sum() == 20


def test_without_pandas_the_error_says_what_to_install(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is 60 MB that a load generator does not need."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PlanError, match=r"to_pandas\(\) needs the extra 'pandas', .* pip install .*\[pandas\]"):
        summary.ticks.to_pandas()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PlanError, match=r"needs the extra 'parquet', .* pip install .*\[parquet\]"):
        summary.rows.to_arrow()


def test_a_run_leaves_its_caller_as_it_was(plan: Plan) -> None:
    """A notebook goes on for hours after it: a narrowed CPU affinity or umask would follow everything that it does."""

    def state() -> tuple[object, ...]:
        mask = os.umask(0o022)
        os.umask(mask)
        return os.sched_getaffinity(0), mask, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    before = state()
    run(plan)
    assert state() == before


def test_it_runs_where_an_event_loop_runs_and_in_a_thread(plan: Plan) -> None:
    """A notebook's cell is in a running loop; a web service calls from a thread, where no signal can be handled."""

    async def both() -> tuple[Summary, Summary]:
        return run(plan), await asyncio.to_thread(run, plan)

    assert [summary.requests.ok for summary in asyncio.run(both())] == [20, 20]


def test_a_run_whose_requests_fail_has_a_result(tmp_path: Path) -> None:
    """Failure is data: the caller looks at it."""
    with simulator(faults={"500": 1.0}, **FAST) as failing:
        summary = run(base_url=f"{failing.base_url}/v1", model="m", requests=3, out=tmp_path)
    assert summary.requests.ok == 0
    assert sum(summary.requests.failed.values()) == 3
    assert any("all 3 requests failed" in message for message in summary.messages)


def test_what_is_wrong_is_an_error_of_its_kind(tmp_path: Path, server: Simulator) -> None:
    with pytest.raises(PlanError, match="unknown argument 'modle'; did you mean 'model'"):
        run(modle="m")
    with pytest.raises(PlanError, match=r"requests must be >= 1, got '0'"):  # 0 is a value, not an absent flag
        read_plan(base_url="http://h/v1", model="m", requests=0)
    with pytest.raises(PlanError, match="not a int"):
        read_plan(3)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="requests cannot be given with a Plan"):
        run(read_plan(base_url="http://h/v1", model="m"), requests=3)
    with pytest.raises(LensError, match="refused the connection"):
        run(base_url="http://127.0.0.1:1/v1", model="m", requests=3, out=tmp_path)
    with pytest.raises(OutputError, match="is not a directory"):
        load(tmp_path / "nothing")


def test_a_mapping_is_not_changed_and_flags_win(server: Simulator) -> None:
    document = {"target": {"base_url": f"{server.base_url}/v1", "model": "m"}, "requests": 5, "seed": 9}
    made = read_plan(document, requests=7, seed=0, slo="error_rate <= 0.5", header="X-A: b")
    assert (made.phases[0].requests, made.seed, made.slo) == (7, 0, ("error_rate <= 0.5",))
    assert made.targets[0].headers == {"X-A": "b"}
    assert document["requests"] == 5
    assert "headers" not in document["target"]  # type: ignore[operator]


@contextmanager
def interrupted_after_the_start(folder: Path) -> Iterator[None]:
    """Sends this process SIGINT once a run in `folder` has sent something."""

    def watch() -> None:
        end = monotonic() + 30
        while monotonic() < end:
            snapshot = folder / "latest" / ".live" / "snapshot.json"
            if snapshot.exists() and json.loads(snapshot.read_text())["ok_total"]:
                os.kill(os.getpid(), signal.SIGINT)
                return
            sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        watcher.join()


def test_an_interrupt_leaves_a_summary(server: Simulator, tmp_path: Path) -> None:
    """Stop in a notebook after ten minutes: what was measured until then is not lost."""
    with interrupted_after_the_start(tmp_path), pytest.raises(KeyboardInterrupt) as stopped:
        run(base_url=f"{server.base_url}/v1", model="m", rate=50, duration="60s", out=tmp_path)
    assert "the run's result up to then is in" in stopped.value.__notes__[0]
    summary = load(tmp_path / "latest")
    assert summary.run.ended_by == "interrupted"
    assert summary.requests.ok > 0


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    """Every worker imports it, and so does pytest, which registers the fixture in every session."""
    code = (
        "import llm_latency_lens.cli.api.pytest_plugin, sys; print(*sys.modules); print(llm_latency_lens.run.__name__);"
        "import llm_latency_lens; [getattr(llm_latency_lens, name) for name in llm_latency_lens.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, function = done.splitlines()
    assert not {"numpy", "msgspec", "click", "aiohttp", "psutil", "yaml", "rich"} & set(loaded.split())
    assert function == "run"
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = llm_latency_lens.rum


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with the example test, in an environment where the package has its declared entry points."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    lines = "\n".join(f"{name} = {value}" for name, value in declared.items())
    install(tmp_path / "site", "llm-latency-lens", f"[pytest11]\n{lines}\n", version=llm_latency_lens.__version__)
    (tmp_path / "test_latency.py").write_text((ROOT / "examples" / "test_latency.py").read_text())
    return tmp_path


def test_the_example_test_passes_with_the_fixture(project: Path) -> None:
    """As its user runs it: pytest finds the fixture by the entry point alone."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(project / "tmp")]
    done = subprocess.run(
        [*command, "test_latency.py"],
        cwd=project,
        env=environment({"PYTHONPATH": str(project / "site")}),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert list((project / "tmp").glob("lens*/latest/summary.json"))  # below pytest's directory, not in the user's


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict(project: Path) -> None:
    """Typed attributes are the promise of py.typed; the stubs of pandas and pyarrow are their own affair."""
    (project / "site" / "llm_latency_lens").symlink_to(ROOT)
    (project / "script.py").write_text(CHECKED)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", "cache"]
    config = "[mypy]\n[mypy-pandas.*,pyarrow.*]\nignore_missing_imports = True\n"
    (project / "mypy.ini").write_text(config)
    done = subprocess.run(
        [*command, "script.py", "test_latency.py"],
        cwd=project,
        env=environment({"MYPYPATH": "site"}),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Revealed type is "builtins.str"' in done.stdout or 'Revealed type is "str"' in done.stdout
