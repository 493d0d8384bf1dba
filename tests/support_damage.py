"""Damages files at random as disks, editors and full file systems do, and says what it did."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from time import monotonic, sleep

import psutil
from click.testing import CliRunner, Result

from llm_latency_lens.cli.recover import finish
from llm_latency_lens.cli.report import report
from tests.support_lens import manifest_of, running
from tests.support_simulator import Simulator


def damage(path: Path, dice: random.Random) -> str:
    """One of: cut short, emptied, some bytes changed, a block of zeros, all garbage, a few bytes more."""
    content = bytearray(path.read_bytes())
    how = dice.choice(["cut", "emptied", "changed", "zeros", "garbage", "longer"])
    at = dice.randrange(len(content)) if content else 0
    if how == "cut":
        del content[at:]
    elif how == "emptied":
        content.clear()
    elif how == "changed":
        for _ in range(dice.randint(1, 8)):
            if content:
                content[dice.randrange(len(content))] = dice.randrange(256)
    elif how == "zeros":
        content[at : at + 512] = bytes(min(512, len(content) - at))
    elif how == "garbage":
        content[:] = dice.randbytes(dice.randint(1, 4096))
    else:
        content += dice.randbytes(dice.randint(1, 200))
    path.write_bytes(content)
    return f"{path.name} {how} at {at}"


def reported(run_dir: Path, target: str) -> Result:
    """`lens report RUN_DIR --to TARGET`, in this process."""
    return CliRunner().invoke(report, [str(run_dir), "--to", target], standalone_mode=False)


def killed_run(sim: Simulator, cwd: Path) -> tuple[Path, Path]:
    """The run directory and the segments of a run that was killed at work."""
    cwd.mkdir()
    target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "50", "--duration", "1h")
    with running(*target, cwd=cwd) as process:
        segments, manifest = manifest_of(cwd)
        end = monotonic() + 30
        while not (segments / "checkpoint").exists():
            assert monotonic() < end
            sleep(0.02)
        process.kill()
        process.wait()
        while any(psutil.pid_exists(pid) for pid in manifest["pids"].values()):
            assert monotonic() < end
            sleep(0.02)
    return (cwd / "runs/latest").resolve(), segments


def recovered(run_dir: Path, segments: Path, folder: Path, dice: random.Random) -> tuple[Exception | None, str]:
    """What `lens recover` raises for a copy of a killed run in `folder` with one damaged file, and which damage it was."""
    shutil.copytree(run_dir, folder / "run", symlinks=True)
    shutil.copytree(segments, folder / "segments")
    manifest = json.loads((folder / "segments/run.json").read_bytes())
    manifest["run_dir"] = str(folder / "run")
    (folder / "segments/run.json").write_text(json.dumps(manifest))
    names = [*(folder / "segments").glob("*"), *(folder / "run").glob("*.*")]
    how = damage(dice.choice(sorted(path for path in names if path.is_file())), dice)
    try:
        finish(folder / "segments")
    except Exception as error:
        return error, how
    return None, how
