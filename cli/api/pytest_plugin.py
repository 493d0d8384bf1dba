"""The pytest fixture `lens_run`, registered by the entry point `pytest11`. pytest loads this file in every session of
the environment: it imports nothing of the package until the fixture is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from .runs import FlagValue, PlanSource
    from .summary import Summary


class LensRun(Protocol):
    """`run`, as the fixture has it; for annotations."""

    def __call__(self, plan: PlanSource | None = None, /, **flags: FlagValue) -> Summary: ...


@pytest.fixture(scope="session")
def lens_run(tmp_path_factory: pytest.TempPathFactory) -> LensRun:
    """`llm_latency_lens.run` with run directories of its own below pytest's temporary directory; `out=` overrides it.

    Of the session's scope, so that a module's fixture can measure once for many tests.
    """
    folder = tmp_path_factory.mktemp("lens")

    def measured(plan: Any = None, /, **flags: Any) -> Summary:
        from .runs import run

        return run(plan, **({"out": folder} | flags))

    return measured
