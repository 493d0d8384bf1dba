"""Runs a plan from Python, in processes of its own.

`run` starts the same process as each run of `lens run --repeat`, with the plan on its stdin, so that the caller keeps its
signals, its umask, its CPU affinity and its event loop: a supervisor changes all of them. It works in a test, in a
notebook whose event loop runs, and in any thread.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...engine.errors import PlanError, error_of
from ...engine.frames import frame
from ...engine.plan.plan import Plan
from ...engine.planfile.build import make_plan
from ...engine.planfile.document import Source
from ...engine.planfile.flags import FLAGS, apply_flags
from ...engine.planfile.reading import read_document
from ...engine.runs.rundir import SUMMARY, run_id_of
from ..repeat.order import RunOrder, started
from .summary import Summary, summary_of

PlanSource = Mapping[str, Any] | str | os.PathLike[str]
FlagValue = str | int | float | os.PathLike[str] | Sequence[str] | None
OF_THE_COMMAND: Final = frozenset({"as_json", "quiet", "strict"})  # what `lens run` prints and ends with


def read_plan(source: PlanSource | None = None, /, **flags: FlagValue) -> Plan:
    """The plan of a plan file (its path), of a mapping with a plan file's keys, or of flags alone.

    `flags` are the options of `lens run` with underscores: `read_plan(base_url=..., model="m", rate=20, duration="30s",
    slo=["ttft_ms.p99 <= 500"])`. A flag wins over the plan. Raises PlanError.
    """
    document, where = read_document(source) if isinstance(source, str | os.PathLike) else ({}, Source())
    if isinstance(source, Mapping):
        document = copy.deepcopy(dict(source))
    elif source is not None and not isinstance(source, str | os.PathLike):
        raise PlanError(f"a plan is a path, a mapping or a Plan, not a {type(source).__name__}")
    given = {name: _written(name, value) for name, value in flags.items()}
    apply_flags(document, where, given)
    name = "simulate" if given.get("simulate") else Path(source).stem if where.name and source else "run"  # type: ignore[arg-type]  # a name: it is a path
    return make_plan(document, where, os.environ, default_name=name)


def run(plan: Plan | PlanSource | None = None, /, *, verbose: bool = False, **flags: FlagValue) -> Summary:
    """Measures, and returns the result. Blocks until the run is over; in a coroutine: `await asyncio.to_thread(run, ...)`.

    `plan` and `flags` are as for `read_plan`, or `plan` is a Plan and there are no flags. `simulate=True` starts the
    built-in provider and measures it. Prints nothing; `verbose` shows the live view and warnings on stderr.
    A run whose requests failed, or whose objectives did, has a result: see `requests`, `verdict` and `slo`. Raises
    PlanError for a plan that is wrong and LensError where there is no result. Ctrl-C ends the run with a summary, and
    raises KeyboardInterrupt with a note of where it is; pressed again, it cancels what is in flight.
    """
    with contextlib.ExitStack() as stack:
        beside: list[int] = []
        if isinstance(plan, Plan):
            if flags:
                raise PlanError(f"{', '.join(flags)} cannot be given with a Plan; give them to read_plan()")
        else:
            if flags.get("simulate"):
                from ..simulated import simulator

                simulated = stack.enter_context(simulator())
                flags["base_url"] = f"{simulated.base_url}/v1"
                beside.append(simulated.pid)
            plan = read_plan(plan, **flags)
        return _result(plan, beside, verbose=verbose)


def _written(name: str, value: FlagValue) -> Any:
    """A flag's value as the command line has it: numbers are text there, and what may be repeated is a list."""
    known = {flag.name: flag for flag in FLAGS if flag.name not in OF_THE_COMMAND}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`lens run --help` lists them, a mapping or file has all keys"
        raise PlanError(f"unknown argument {name!r}; {hint}")
    if value is None or isinstance(value, bool):
        return value
    if known[name].multiple:
        return [value] if isinstance(value, str) else [*value]  # type: ignore[misc]  # a number would be an error below
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _result(plan: Plan, beside: list[int], *, verbose: bool) -> Summary:
    run_id = run_id_of(plan.name)
    run_dir = Path(plan.output.dir).absolute() / run_id
    order = RunOrder(plan, run_id, os.getpid(), beside, quiet=not verbose, warn=True)
    with started(keep_messages=not verbose) as process:
        content: bytes | None = frame(order)
        interrupted = False
        while True:
            try:
                answer, said = process.communicate(content)
                break
            except KeyboardInterrupt:  # of the main thread: the run ends as it does by a Ctrl-C of `lens run`
                interrupted = True
                content = None  # communicate() goes on where it was
                process.send_signal(signal.SIGINT)
    messages = tuple((said or b"").decode("utf-8", "replace").splitlines())
    finished = (run_dir / SUMMARY).exists()
    if interrupted:
        stop = KeyboardInterrupt()
        stop.add_note(f"the run's result up to then is in {run_dir}" if finished else "nothing was measured")
        raise stop
    if not finished:
        reason = answer.decode("utf-8", "replace") or (messages[-1] if messages else "")
        code = process.returncode
        raise error_of(reason or f"the run's process ended with exit code {code} and without a result", code)
    return summary_of(run_dir, messages)
