"""The guard around all commands: streams that are closed or full, and errors that nobody expected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support_lens import LENS, Ended, environment
from tests.support_runs import FakeRun
from tests.support_simulator import FAST, simulator


def shell(line: str, cwd: Path, **env: str) -> Ended:
    """A shell's `line`, in which `$LENS` is the command."""
    whole = environment({**env, "LENS": " ".join(LENS)})
    done = subprocess.run(["sh", "-c", line], cwd=cwd, env=whole, capture_output=True, text=True, timeout=90)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command", ["--version", "--help", "run --help", "providers", "report .", "report . --to json"]
)
@pytest.mark.parametrize(
    ("stdout", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(
    command: str, stdout: str, reason: str, tmp_path: Path
) -> None:
    """A script that stores results on a full disk must not take the run for a success, and needs no traceback."""
    FakeRun(ticks=3, targets=1).write(tmp_path)
    ended = shell(f"$LENS {command} {stdout}", tmp_path)
    assert ended.code == 1
    assert ended.stderr == f"lens: stdout cannot be written: {reason}\n"


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_run_succeeds_without_a_stderr(stderr: str, tmp_path: Path) -> None:
    """stderr holds only the live view and hints: a closed terminal must not cost a measurement."""
    with simulator(**FAST) as sim:
        line = f"$LENS run --base-url {sim.base_url}/v1 --model m --requests 3 {stderr}"
        ended = shell(line, tmp_path)
    assert ended.code == 0
    assert "3 planned = 3 sent" in ended.stdout


def test_an_error_without_a_stderr_keeps_its_exit_code(tmp_path: Path) -> None:
    """Exit codes are what scripts read; an error message that cannot be written must not change them."""
    assert shell("$LENS run --nonsense 2>&-", tmp_path).code == 2
    assert shell("$LENS validate missing.yaml 2>/dev/full", tmp_path).code == 2


@pytest.mark.slow
def test_a_closed_stdout_never_becomes_a_file_of_the_run(tmp_path: Path) -> None:
    """Without descriptor 1 the next file opened would get its number, and what is printed would damage that file."""
    with simulator(**FAST) as sim:
        ended = shell(f"$LENS run --json --base-url {sim.base_url}/v1 --model m --requests 3 >&- <&-", tmp_path)
    assert ended.code == 1
    assert "Traceback" not in ended.stderr
    summary = json.loads((tmp_path / "runs/latest/summary.json").read_bytes())
    assert summary["requests"]["ok"] == 3


def test_a_reader_that_stops_early_causes_no_traceback(tmp_path: Path) -> None:
    """`lens report | head` is ordinary use."""
    ended = shell("$LENS providers --json | head -c 1", tmp_path)
    assert (ended.code, ended.stdout) == (0, "[")
    assert ended.stderr in ("", "lens: stdout cannot be written: Broken pipe\n")


@pytest.mark.parametrize("columns", ["abc", "-1", "0", "1e3"])
def test_a_senseless_width_is_ignored(columns: str, tmp_path: Path) -> None:
    """COLUMNS comes from whatever started the process; it may be anything."""
    FakeRun(ticks=3, targets=1).write(tmp_path)
    ended = shell("$LENS report .", tmp_path, COLUMNS=columns)
    assert (ended.code, ended.stderr) == (0, "")
    assert max(len(line) for line in ended.stdout.splitlines()) <= 100


def test_an_unexpected_error_is_one_line_that_says_where_it_happened(tmp_path: Path) -> None:
    """A bug shows its place; the traceback, whose lines may hold keys, only comes when it is asked for."""
    code = "from llm_latency_lens.cli import main as m; m.COMMANDS['x'] = m.Entry('json', 'nothing', ''); m.main(['x'])"
    command, env = [sys.executable, "-c", code], environment()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("lens: unexpected AttributeError at main.py:")
    assert done.stderr.count("\n") == 1
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**env, "LENS_TRACEBACK": "1"})
    assert "Traceback" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_a_quiet_run_does_not_load_rich(flag: str, tmp_path: Path) -> None:
    """rich costs 0.1 s and 10 MB that a run from a script has no use for."""
    with simulator(**FAST) as sim:
        program = f"{sys.executable} -X importtime -m llm_latency_lens.cli"
        ended = shell(f"{program} run {flag} --base-url {sim.base_url}/v1 --model m --requests 3", tmp_path)
    assert ended.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "llm_latency_lens.engine.runs.supervisor" in loaded
    assert "rich" not in loaded
