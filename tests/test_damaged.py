"""Damaged run directories: `lens report` and `lens recover` say what is damaged, with exit code 1, or pass over it.

74 of 586 reports and 2 of 300 recoveries ended in a traceback. Seeded; `python -m tests.chaos --all` does more of them.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_latency_lens.engine.errors import LensError
from tests.support_damage import damage, killed_run, recovered, reported
from tests.support_lens import lens
from tests.support_simulator import FAST, Simulator, simulator

FORMATS = ("console", "json", "html", "csv", "hdr", "parquet")
REPORTS = int(os.environ.get("LENS_DAMAGED", "120"))
RECOVERIES = REPORTS // 4


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(**FAST) as server:
        yield server


@pytest.fixture(scope="module")
def healthy(sim: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run's directory."""
    cwd = tmp_path_factory.mktemp("healthy")
    target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "50", "--duration", "2s")
    assert lens("run", *target, "--quiet", cwd=cwd).code == 0
    return (cwd / "runs/latest").resolve()


@pytest.mark.slow
def test_no_damage_to_a_run_directory_ends_in_a_traceback(healthy: Path, tmp_path: Path) -> None:
    """Each file in turn, each format in turn."""
    names = sorted(path.name for path in healthy.iterdir() if path.is_file())
    for case in range(REPORTS):
        copy = tmp_path / str(case)
        shutil.copytree(healthy, copy)
        how = damage(copy / names[case % len(names)], random.Random(case))
        target = FORMATS[case // len(names) % len(FORMATS)]
        found = reported(copy, target)
        assert found.exception is None or isinstance(found.exception, LensError), (case, how, target, found.exc_info)
        shutil.rmtree(copy)


@pytest.mark.slow
def test_no_damage_to_a_killed_run_ends_recover_in_a_traceback(sim: Simulator, tmp_path: Path) -> None:
    """The segments outlive every process, and whatever happened to them."""
    run_dir, segments = killed_run(sim, tmp_path / "killed")
    for case in range(RECOVERIES):
        place = tmp_path / str(case)
        error, how = recovered(run_dir, segments, place, random.Random(case))
        assert error is None or isinstance(error, LensError), (case, how, error)
        shutil.rmtree(place)
    shutil.rmtree(segments)
