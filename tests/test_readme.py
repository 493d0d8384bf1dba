"""README.md: every command in it exists as written, and the measurements run; its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
import yaml

from llm_latency_lens.cli.main import COMMANDS
from llm_latency_lens.cli.main import lens as group
from tests.support_lens import lens
from tests.support_simulator import FAST, simulator

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
LINES = [shlex.split(line, comments=True) for line in re.findall(r"^    (lens .*)$", TEXT, re.MULTILINE)]
RUN = (  # the measurements that are run here; sweeps, repeated runs and probes have tests of their own
    "--concurrency 32",
    "--rate 50",
    "--provider anthropic",
    "--until",
    "--junit lens.xml",
)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def test_the_readme_shows_most_commands() -> None:
    """A command that the README does not name is found by nobody."""
    shown = {line[1] for line in LINES} | set(re.findall(r"`lens (\w+)", TEXT))
    assert shown >= set(COMMANDS) - {"schema", "simulate"}


@pytest.mark.parametrize("line", [shlex.join(line[1:]) for line in LINES])
def test_a_command_of_the_readme_has_these_options(line: str) -> None:
    """A flag that was renamed would make the first thing that people try a usage error."""
    name, *arguments = shlex.split(line)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    command.make_context(name, arguments)


@pytest.mark.slow
def test_the_measurements_of_the_readme_run(tmp_path: Path) -> None:
    """As written, but for their server and for times that are cut to a second."""
    (block,) = re.findall(r"```yaml\n(name: nightly.*?)```", TEXT, re.DOTALL)
    chosen = [line for line in LINES if line[1] == "run" and any(part in shlex.join(line) for part in RUN)]
    assert len(chosen) == len(RUN)
    with simulator(**FAST) as sim:
        plan = re.sub(r"duration: \w+", "duration: 0.5s", block).replace("http://127.0.0.1:8000", sim.base_url)
        plan = plan.replace("provider: anthropic", f"provider: anthropic, base_url: '{sim.base_url}'")
        document = yaml.safe_load(plan)
        del document["export"]  # a database; checked with the plan as written, below
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
        environ = {"ANTHROPIC_API_KEY": "k"}
        commands = []
        for number, line in enumerate(chosen):
            text = shlex.join(line[1:]).replace("http://127.0.0.1:8000", sim.base_url)
            text = re.sub(r"--(duration|warmup) \w+", r"--\1 0.5s", text)
            if "anthropic" in text:
                text += f" --base-url {sim.base_url}"
            commands.append([*shlex.split(text), "--json", "--out", f"out-{number}"])
        with ThreadPoolExecutor(3) as pool:  # most of a short run is the start of its processes
            results = list(pool.map(lambda command: lens(*command, cwd=tmp_path, env=environ), commands))
        (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
        program = program.replace("http://127.0.0.1:8000", sim.base_url).replace("requests=200", "requests=40")
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    for command, ended in zip(commands, results, strict=True):
        assert ended.code in (0, 3, 4), (command, ended.stderr)  # objectives and verdicts are this machine's
        assert ended.summary["requests"]["ok"] > 0, command
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lens.xml").exists()
    assert (tmp_path / "lens.md").exists()
    (tmp_path / "written.yaml").write_text(block)
    written = lens("validate", "written.yaml", cwd=tmp_path, env={"ANTHROPIC_API_KEY": "k", "INFLUX_TOKEN": "t"})
    assert written.code == 0, written.stderr


def test_the_links_of_the_readme_lead_somewhere() -> None:
    """Sections are renamed, and files moved; a dead link is found by readers only."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", TEXT):
        if target.startswith("http"):
            continue
        path = ROOT / (target or "README.md")
        assert path.exists(), target
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(path.read_text())
        }
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


def test_every_example_is_in_the_readme() -> None:
    """Nobody opens a folder to see whether it might hold what they need."""
    for path in (ROOT / "examples").iterdir():
        assert path.is_dir() or f"`{path.name}`" in TEXT, path.name
