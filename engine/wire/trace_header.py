"""The traceparent header of each request, put into its rendered form: equal prompts are rendered once."""

from __future__ import annotations

from typing import Final

from ..plan.plan import Plan
from ..records.trace import trace_context

NAME: Final = "traceparent"


class TraceHeader:
    """Adds the header where the plan asks for it, but to no target whose own headers have one. `wanted`: it adds some."""

    __slots__ = ("_run", "_share", "_targets", "wanted")

    def __init__(self, plan: Plan, run: str) -> None:
        self._run = run
        self._share = plan.trace_share or 0.0
        self._targets = [all(name.lower() != NAME for name in target.headers) for target in plan.targets]
        self.wanted = plan.trace_share is not None and any(self._targets)

    def add(self, phase: int, target: int, request: int, wire: bytes) -> bytes:
        """The rendered request with its own trace context."""
        if not self.wanted or not self._targets[target]:
            return wire
        value = trace_context(self._run, phase, request, self._share).traceparent
        line, end, rest = wire.partition(b"\r\n")
        return b"%b\r\n%b: %b%b%b" % (line, NAME.encode(), value.encode(), end, rest)
