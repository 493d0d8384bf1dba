"""What an installation from a wheel or an sdist must have beside the modules."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm_latency_lens import __version__
from tests.support_lens import environment, lens

ROOT = Path(__file__).parent.parent
SYSTEMD = sorted(str(path.relative_to(ROOT / "systemd")) for path in (ROOT / "systemd").rglob("*") if path.is_file())


def python(*arguments: str, cwd: Path, program: str = sys.executable) -> str:
    """The output of `python ARGUMENTS`, which must go well."""
    done = subprocess.run(
        [program, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_a_program(tmp_path: Path) -> None:
    """`python -m` is how a program is started whose script is not on PATH."""
    assert python("-m", "llm_latency_lens", "--version", cwd=tmp_path) == f"lens, version {__version__}\n"


def test_units_and_dashboards_are_listed_and_printed(tmp_path: Path) -> None:
    """Who has installed a wheel has no checkout to copy them from."""
    assert lens("systemd", cwd=tmp_path).stdout.splitlines() == SYSTEMD
    for name in ("latency-lens@.service", "grafana/influxdb.json"):
        assert lens("systemd", "--print", name, cwd=tmp_path).stdout == (ROOT / "systemd" / name).read_text()
    wrong = lens("systemd", "--print", "../engine/errors.py", cwd=tmp_path)
    assert wrong.code == 2
    assert "latency-lens@.service" in wrong.stderr


@pytest.mark.slow
def test_wheel_and_sdist_are_complete(tmp_path: Path) -> None:
    """The editable install of a checkout has every file; what the packages lack shows only here."""
    (tmp_path / "src").mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta as b; b.build_sdist('../dist'); b.build_wheel('../dist')"
    pytest.importorskip("setuptools", minversion="77", reason="the build backend is not installed")
    python("-W", "ignore", "-c", build, cwd=tmp_path / "src")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in files.stdout.split("\0") if name and not name.startswith(".")}
    assert wanted - packed == set()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"llm_latency_lens/systemd/{name}" for name in SYSTEMD} <= names
    assert {"llm_latency_lens/py.typed", "llm_latency_lens/__main__.py"} <= names
    assert not [name for name in names if "/tests/" in name or "/benches/" in name]
    code = "import sys; sys.path[:0] = [sys.argv[1]]; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in str(f)]"
    code += "; import llm_latency_lens as l; print(l.__file__); from llm_latency_lens import run, load, Plan"
    assert str(tmp_path / "site") in python("-c", code, str(tmp_path / "site"), cwd=tmp_path)
