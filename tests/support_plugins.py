"""Packages for a temporary directory on PYTHONPATH, as an installer leaves them: modules, and a dist-info folder."""

from __future__ import annotations

import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parent / "plugins"


def install(folder: Path, package: str, entry_points: str, *, module: str = "", version: str = "1.0") -> None:
    """Installs `package` with this entry_points.txt. `module` is the text of its module, else the example's is copied."""
    stem = package.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if module:
        (folder / f"{stem}.py").write_text(module)
    elif (EXAMPLES / f"{stem}.py").exists():
        shutil.copy(EXAMPLES / f"{stem}.py", folder)
    info = folder / f"{stem}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def install_examples(folder: Path) -> None:
    """The three example packages: dialect `plain-chat`, workload `arithmetic`, exporter `statsd`."""
    install(folder, "lens-plain-chat", "[llm_latency_lens.dialects]\nplain-chat = lens_plain_chat:PlainChat\n")
    install(folder, "lens-arithmetic", "[llm_latency_lens.workloads]\narithmetic = lens_arithmetic:Sums\n")
    install(folder, "lens-statsd", "[llm_latency_lens.exporters]\nstatsd = lens_statsd:StatsD\n")
