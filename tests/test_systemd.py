"""The units: accepted by systemd, hardened, and about programs and options that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from llm_latency_lens.cli.main import COMMANDS
from tests.support_lens import lens

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
EXPOSURE_MAX = 2.5

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")


def installed(unit: Path, folder: Path) -> Path:
    """The unit with its programs where this machine has some."""
    copy = folder / unit.name
    copy.write_text(re.sub(r"/opt/latency-lens/\.venv/bin/lens", "/bin/true", unit.read_text()))
    for other in [*SYSTEMD.glob("*.slice")]:
        (folder / other.name).write_text(other.read_text())
    return copy


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_against_a_unit(unit: Path, tmp_path: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(installed(unit, tmp_path))], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardened(unit: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(installed(unit, tmp_path))],
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_calls_commands_that_exist(unit: Path) -> None:
    called = re.findall(r"bin/lens (\S+)", unit.read_text())
    assert called
    assert set(called) <= set(COMMANDS)


def test_the_probe_has_time_to_stop_and_its_rings_outlive_a_crash() -> None:
    parser = RawConfigParser(strict=False)
    parser.read(SYSTEMD / "latency-lens@.service")
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"].removesuffix("s")) > 45  # cli.probe.STOP_NS
    assert service["RuntimeDirectoryPreserve"] == "restart"
    assert service["KillMode"] == "mixed"


def test_the_plan_of_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (SYSTEMD / "README.md").read_text(), re.DOTALL)
    (tmp_path / "hosted.yaml").write_text(block)
    (tmp_path / "keys_openai").write_text("sk-test\n")
    ended = lens("validate", "hosted.yaml", cwd=tmp_path, env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert ended.code == 0, ended.stderr
