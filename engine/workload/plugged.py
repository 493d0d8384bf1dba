"""A workload of another package (entry points `llm_latency_lens.workloads`): `workload: {plugin: NAME, options: {...}}`.

The entry point names a callable, `make(options, seed)`, that returns an object with the one method of `Asks`. Its items
must be a function of (seed, phase, slot) alone: every worker makes those of its own slots, a successor makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import LensError, PlanError
from ..installed import Plugin, plugin_of, raised
from ..plan.plan import Workload
from .ask import Ask, Asks


class PluggedAsks:
    """An `Asks` around another package's; what it raises or returns wrongly is a PlanError with the package's name."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._plugin: Plugin = plugin_of("workload", workload.path)
        try:
            self._asks: Asks = self._plugin.made(workload.options, seed)
        except LensError:
            raise
        except Exception as error:
            raise self._plugin.error(raised("its constructor", error)) from error
        if not hasattr(self._asks, "asks"):
            raise self._plugin.error(f"returns a {type(self._asks).__name__} that has no method asks()")

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        slot = first - 1
        try:
            for ask in self._asks.asks(worker, workers, first, phase):
                if not isinstance(ask, Ask):
                    raise self._error(f"yields a {type(ask).__name__} from asks(), not an Ask")
                if ask.turns is not None:
                    raise self._error("yields turns; conversations come from workload.sessions only")
                slot = ask.slot
                yield ask
        except LensError:
            raise
        except Exception as error:
            raise self._error(raised("asks()", error)) from error
        raise self._error(f"ends after slot {slot}; asks() must go on for ever")

    def _error(self, problem: str) -> PlanError:
        return self._plugin.error(problem)
