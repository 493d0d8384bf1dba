"""The units under a real systemd: installed as systemd/README.md says, started, reloaded, hung, killed and stopped."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.support_nspawn import Machine, machine, missing
from tests.support_simulator import Simulator, simulator

ROOT = Path(__file__).parent.parent
PROBE = "latency-lens@hosted"
SOAK = "latency-lens-soak@nightly"
KEY = "sk-test-of-the-units-0123456789"
WATCHDOG_S = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=missing() or "not skipped"),
]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def plan(base_url: str, port: int, *, every: str = "500ms", rotate: str = "1h", name: str = "hosted") -> str:
    return f"""
name: {name}
targets:
  - {{name: openai, base_url: "{base_url}", model: m, api_key_file: "${{CREDENTIALS_DIRECTORY}}/keys_openai"}}
workload: {{prompt: Say hello., output_tokens: 4}}
probe: {{every: {every}, rotate: {rotate}}}
export: {{prometheus: {{url: "prometheus://127.0.0.1:{port}"}}}}
"""


def install(box: Machine) -> None:
    """The steps of systemd/README.md, with this checkout in the place of the clone."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in filter(None, files):
            if (ROOT / name.decode()).is_file():
                archive.add(ROOT / name.decode(), name.decode())
    packed.seek(0)
    target = box.root / "opt/latency-lens"
    target.mkdir(parents=True)
    with tarfile.open(fileobj=packed) as archive:
        archive.extractall(target, filter="data")
    steps = (ROOT / "systemd" / "README.md").read_text()
    block = steps[steps.index("git clone") :].split("\n\n")[0]
    commands = [line.strip() for line in block.splitlines()][1:]  # without the clone
    assert any("pip install" in line for line in commands)
    for line in commands:
        box.run(f"cd /opt/latency-lens && PATH=/usr/sbin:/usr/bin:/sbin:/bin && {line}", check=True)


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with simulator(ttft_ms=5, itl_ms=1) as running:
        yield running


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, provider: Simulator, port: int) -> Iterator[Machine]:
    """A booted system with the lens installed, a key in its credentials and both plans."""
    with machine(tmp_path_factory.mktemp("nspawn") / "machine") as made:
        made.boot()
        install(made)
        made.write("/etc/latency-lens/credentials/openai", KEY, 0o600)
        made.write("/etc/latency-lens/hosted.yaml", plan(f"{provider.base_url}/v1", port))
        watchdog = f"[Service]\nWatchdogSec={WATCHDOG_S}s\nRestartSec=200ms\nTimeoutStartSec=60s\n"
        made.write("/etc/systemd/system/latency-lens@.service.d/test.conf", watchdog)
        made.run("systemctl daemon-reload", check=True)
        made.run(f"systemctl start {PROBE}", check=True)
        yield made


def reports(box: Machine) -> list[dict[str, object]]:
    """The summaries of the probe's history, oldest first."""
    history = box.root / "var/lib/private/latency-lens/hosted/history"
    return [json.loads(path.read_bytes()) for path in sorted(history.glob("*/summary.json"))]


def status(box: Machine) -> str:
    return box.run(f"systemctl show -p StatusText --value {PROBE}").stdout


def active(box: Machine) -> bool:
    return box.run(f"systemctl is-active {PROBE}").stdout.strip() == "active"


def page(port: int) -> str:
    """The exporter's page; empty while nobody listens."""
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return ""


def test_the_probe_is_ready_with_its_key_and_the_page_is_served(box: Machine, port: int) -> None:
    """`systemctl start` returned, so the first probe succeeded: the key came through LoadCredential."""
    assert active(box)
    box.until(lambda: "lens_" in page(port), 20, "the page is served")
    assert KEY not in box.journal(PROBE)


def test_a_good_plan_with_the_same_page_is_taken_over(box: Machine, provider: Simulator, port: int) -> None:
    """The page's port is the probe's own: it must not refuse itself."""
    box.write("/etc/latency-lens/hosted.yaml", plan(f"{provider.base_url}/v1", port, every="300ms"))
    before = box.main_pid(PROBE)
    box.run(f"systemctl reload {PROBE}", check=True)
    box.until(lambda: len(reports(box)) >= 1, 30, "the first run of the probe is closed after the reload")
    assert "refused" not in box.journal(PROBE)
    assert box.main_pid(PROBE) == before


def test_a_bad_plan_is_refused_and_the_old_one_goes_on(box: Machine, provider: Simulator, port: int) -> None:
    """A typo in an editor must not end a service."""
    before = box.main_pid(PROBE)
    for wrong in ("name: 2026-99-99\n", "seed: 0b_\n", "targets: [\n", "output: {dir: ~nosuchuser/x}\n"):
        box.write("/etc/latency-lens/hosted.yaml", plan(f"{provider.base_url}/v1", port) + wrong)
        count = box.journal(PROBE).count("refused")
        box.run(f"systemctl reload {PROBE}")
        box.until(lambda count=count: box.journal(PROBE).count("refused") > count, 10, f"{wrong!r} is refused")
    assert box.main_pid(PROBE) == before
    box.write("/etc/latency-lens/hosted.yaml", plan(f"{provider.base_url}/v1", port))


def test_a_stopped_worker_makes_the_watchdog_restart_the_unit(box: Machine) -> None:
    """systemd hears nothing for WatchdogSec, kills the unit and starts it again; what was lost is reported."""
    before = box.main_pid(PROBE)
    box.run("kill -STOP $(pgrep -f llm_latency_lens.engine.worker | head -1)", check=True)
    box.until(lambda: box.main_pid(PROBE) not in (0, before), WATCHDOG_S * 4, "the watchdog restarted the unit")
    box.until(lambda: active(box), 60, "it is ready again")
    journal = box.journal()
    assert re.search(r"[Ww]atchdog timeout", journal)
    assert "no progress" in journal


def test_a_killed_main_process_is_started_again_and_its_run_recovered(box: Machine) -> None:
    """SIGKILL of the probe: the next start finishes what it left."""
    before, known = box.main_pid(PROBE), len(reports(box))
    assert before
    box.run(f"kill -KILL {before}", check=True)
    box.until(lambda: box.main_pid(PROBE) not in (0, before), 30, "the unit was started again")
    box.until(lambda: len(reports(box)) > known, 60, "the killed run has a report")
    box.until(lambda: active(box), 60, "it is ready again")  # systemd drops a reload of a unit that is still starting
    assert "recovered" in box.journal(PROBE)


def test_a_rotation_reports_no_standstill(box: Machine, provider: Simulator, port: int) -> None:
    """Each rotation closes one run and begins the next; the watchdog is fed through it."""
    box.write("/etc/latency-lens/hosted.yaml", plan(f"{provider.base_url}/v1", port, rotate="10s"))
    stalls = box.journal(PROBE).count("no progress")
    known = len(reports(box))
    box.run(f"systemctl reload {PROBE}", check=True)
    box.until(lambda: len(reports(box)) >= known + 3, 90, "three rotations")
    assert box.journal(PROBE).count("no progress") == stalls


def test_the_history_adds_up_and_the_service_stops_cleanly(box: Machine) -> None:
    """Every slot of every run is accounted for, also after a reload, a watchdog restart and a SIGKILL."""
    box.run(f"systemctl stop {PROBE}", check=True)
    assert box.run(f"systemctl show -p Result --value {PROBE}").stdout.strip() == "success"
    found = reports(box)
    assert len(found) >= 5
    for report in found:
        requests = report["requests"]
        assert isinstance(requests, dict)
        assert requests["planned"] == requests["sent"] + sum(requests["unsent"].values())
        failed = sum(requests["failed"].values())
        assert requests["sent"] == requests["ok"] + failed + requests["cancelled"] + requests["in_flight_at_end"]
    lens = "/opt/latency-lens/.venv/bin/lens"
    done = box.run(f"{lens} report /var/lib/private/latency-lens/hosted --since 1h --to json", check=True)
    assert json.loads(done.stdout)["requests"]["ok"] > 0
    assert KEY not in box.journal()


def test_a_soak_run_is_stopped_and_leaves_a_complete_report(box: Machine, provider: Simulator) -> None:
    """`systemctl stop` drains; 130 is success for the unit."""
    box.write(
        "/etc/latency-lens/nightly.yaml",
        f"""
name: nightly
targets: [{{base_url: "{provider.base_url}/v1", model: m}}]
workload: {{prompt: Say hello., output_tokens: 4}}
phases: [{{name: steady, duration: 1h, load: {{rate: 20}}}}]
""",
    )
    runs = box.root / "var/lib/private/latency-lens/soak-nightly/runs"
    box.run(f"systemctl start {SOAK}", check=True)
    box.until(lambda: any(runs.glob("*/intervals.jsonl")), 30, "the run writes its ticks")
    box.run(f"systemctl stop {SOAK}", check=True)
    assert box.run(f"systemctl show -p Result --value {SOAK}").stdout.strip() == "success"
    summary = json.loads((runs / "latest" / "summary.json").resolve().read_bytes())
    assert summary["requests"]["ok"] > 0
    assert (next(runs.glob("2*")) / "report.html").exists()
