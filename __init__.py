"""LLM Latency Lens: a latency profiler and load generator for LLM APIs.

    from llm_latency_lens import run

    summary = run(base_url="http://127.0.0.1:8000/v1", model="llama", concurrency=8, requests=200)
    print(summary.verdict.state, summary.metrics["ttft_ms"].p99)

Each name is loaded when it is first used: the workers import this package too, and must stay small.
"""

from typing import TYPE_CHECKING

from .engine import __version__

if TYPE_CHECKING:
    from .cli.api.pytest_plugin import LensRun
    from .cli.api.runs import read_plan, run
    from .cli.api.summary import Summary, load
    from .collectors.snapshot import Report, Snapshot
    from .engine.dialects import END, FAILED, TOKEN, VISIBLE, Dialect, HttpRequest, Prompt, Reply
    from .engine.errors import LensError, OutputError, PlanError, TargetError
    from .engine.plan.plan import Plan, PluginExport, Target
    from .engine.records.record import Outcome
    from .engine.workload.ask import Ask, Asks, slots
    from .exporters.spool.tail import Destination, Refused, Rejected, Unavailable

_MODULES = {
    "cli.api.pytest_plugin": ("LensRun",),
    "cli.api.runs": ("read_plan", "run"),
    "cli.api.summary": ("Summary", "load"),
    "collectors.snapshot": ("Report", "Snapshot"),
    "engine.dialects": ("END", "FAILED", "TOKEN", "VISIBLE", "Dialect", "HttpRequest", "Prompt", "Reply"),
    "engine.errors": ("LensError", "OutputError", "PlanError", "TargetError"),
    "engine.plan.plan": ("Plan", "PluginExport", "Target"),
    "engine.records.record": ("Outcome",),
    "engine.workload.ask": ("Ask", "Asks", "slots"),
    "exporters.spool.tail": ("Destination", "Refused", "Rejected", "Unavailable"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "END",
    "FAILED",
    "TOKEN",
    "VISIBLE",
    "Ask",
    "Asks",
    "Destination",
    "Dialect",
    "HttpRequest",
    "LensError",
    "LensRun",
    "Outcome",
    "OutputError",
    "Plan",
    "PlanError",
    "PluginExport",
    "Prompt",
    "Refused",
    "Rejected",
    "Reply",
    "Report",
    "Snapshot",
    "Summary",
    "Target",
    "TargetError",
    "Unavailable",
    "__version__",
    "load",
    "read_plan",
    "run",
    "slots",
]


def __getattr__(name: str) -> object:
    """A public name, imported now (PEP 562)."""
    from importlib import import_module

    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
