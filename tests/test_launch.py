"""What a run makes before it starts, who may read it, and what a start that fails leaves: nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llm_latency_lens.engine.errors import SegmentError
from llm_latency_lens.engine.process import environ_without_keys
from llm_latency_lens.engine.runs.placement import geometry_of
from tests.support_collector import plan
from tests.support_lens import finish, lens, manifest_of, running
from tests.support_simulator import FAST, simulator


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_directory_and_latest_where_it_was(tmp_path: Path) -> None:
    """`lens report runs/latest` showed an empty directory instead of the run before."""
    with simulator(**FAST) as sim:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--requests", "3", "--quiet")
        assert lens("run", *target, cwd=tmp_path).code == 0
        before = os.readlink(tmp_path / "runs/latest")
        (tmp_path / "file").touch()
        failed = lens("run", *target, cwd=tmp_path, env={"RUNTIME_DIRECTORY": str(tmp_path / "file")})
    assert failed.code == 1
    assert failed.stderr.count("\n") == 1
    assert os.readlink(tmp_path / "runs/latest") == before
    assert sorted(os.listdir(tmp_path / "runs")) == sorted([before, "latest"])


@pytest.mark.slow
def test_only_its_user_can_read_a_run(tmp_path: Path) -> None:
    """The rows and the report may hold prompts and replies."""
    with simulator(**FAST) as sim:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--requests", "3", "--quiet")
        assert lens("run", *target, cwd=tmp_path).code == 0
    for path in [tmp_path / "runs/latest", *(tmp_path / "runs/latest").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.slow
def test_the_collector_has_no_key_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs none, runs as long as the run, and reads what servers sent."""
    with simulator(**FAST) as sim:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "10", "--duration", "24h")
        monkeypatch.setenv("LENS_TEST_TOKEN", "sk-0123456789")
        with running(*target, cwd=tmp_path) as process:
            _, manifest = manifest_of(tmp_path)
            assert b"sk-0123456789" in Path(f"/proc/{process.pid}/environ").read_bytes()
            assert b"sk-0123456789" not in Path(f"/proc/{manifest['pids']['collector']}/environ").read_bytes()
            process.terminate()
            assert finish(process).code == 130


def test_keys_go_by_their_name_or_by_their_value() -> None:
    """A key may stand in a variable of any name; the tokenizer's token is needed."""
    given = {"OPENAI_API_KEY": "a", "MY_PROVIDER": "b", "HF_TOKEN": "c", "PATH": "d", "DB_PASSWORD": "e"}
    assert environ_without_keys(given, {"b"}) == {"HF_TOKEN": "c", "PATH": "d"}


def test_without_a_tmpfs_the_error_names_it(tmp_path: Path) -> None:
    """A container without /dev/shm ended in a traceback."""
    with pytest.raises(SegmentError, match="the rings need a tmpfs at"):
        geometry_of(plan(), 1, tmpfs=tmp_path / "nowhere")
