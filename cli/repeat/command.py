"""Carries out repeated runs one after the other, keeps their index, and prints the comparison or the spread."""

from __future__ import annotations

import datetime
import os
import selectors
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
import msgspec

from ...collectors.snapshot import ENCODER
from ...engine import __version__
from ...engine.errors import LensError, OutputError, TargetError
from ...engine.files import replace
from ...engine.frames import frame
from ...engine.plan.plan import Plan
from ...engine.runs.interrupts import Interrupts
from ...engine.runs.rundir import HTML, LATEST, link_latest, run_id_of
from ...engine.wire.preflight import check_targets
from ...exporters.compare.page import page_of
from ...exporters.compare.repeated import (
    COMPARISON,
    SPREAD,
    RepeatedRun,
    Repetition,
    SidesOf,
    failed_objectives,
    failure_of,
    is_complete,
    own_sides,
    sides_of,
    spread_of_runs,
)
from ...exporters.compare.run import compare_runs
from ...exporters.rundir import read_report
from ..compare import WORSE, print_compared, write_files
from ..launch import budget_prices
from . import sides as measured
from .options import Repeat
from .order import RunOrder, started
from .sides import Sides, Turn

FAILURES_MAX: Final = 2  # failed runs of a side after which no more are started: what failed twice fails again
USAGE: Final = 2
INTERRUPTED: Final = 130


def carry_out_repeated(plan: Plan, repeat: Repeat, interrupts: Interrupts, beside: Sequence[int] = ()) -> int:
    """All runs, their index, and the answer; returns the exit code. Raises LensError where nothing can be answered."""
    sides = measured.sides_of(plan, repeat.against)
    order = list(measured.turns(repeat.times, plan.seed, compared=sides.base is not None))
    budget_prices(plan)  # refuses what every run would refuse
    for name, side in (("base", sides.base), ("candidate", sides.candidate)):
        if side is not None:
            try:
                check_targets(side, os.environ)
            except TargetError as error:
                raise TargetError(f"{name}: {error}" if sides.base else str(error)) from error
    series = Series(plan, sides, repeat, interrupts, beside)
    series.run(order)
    try:
        code = series.answer()
    except LensError as error:
        if not series.interrupted:
            raise
        click.echo(f"lens: {error}", err=True)
        code = 0
    return INTERRUPTED if series.interrupted else code


class Series:
    """The runs of one command, in the directory `folder`."""

    def __init__(self, plan: Plan, sides: Sides, repeat: Repeat, interrupts: Interrupts, beside: Sequence[int]) -> None:
        self._plan = plan
        self._sides = sides
        self._repeat = repeat
        self._interrupts = interrupts
        self._beside = list(beside)
        self._slo_failed = False
        self._stopped = False
        self.folder = Path(plan.output.dir) / run_id_of(plan.name)
        self.index = Repetition(
            id=self.folder.name,
            name=plan.name,
            version=__version__,
            started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            seed=plan.seed,
            repeat=repeat.times,
            base=measured.described(sides.base) if sides.base is not None else None,
            candidate=measured.described(sides.candidate),
        )

    @property
    def interrupted(self) -> bool:
        return bool(self._interrupts.numbers)

    def run(self, order: Sequence[Turn]) -> None:
        """Runs as many as it can: until a signal, an error that every run would have, or two failures of a side."""
        self._interrupts.defer()
        self._make_folder()
        if self.index.base is not None:
            self._say(f"base: {self.index.base}; candidate: {self.index.candidate}")
        self._share_budget(len(order))
        for number, turn in enumerate(order):
            if self._ended():
                break
            self._one(turn, f"run {number + 1} of {len(order)}", first=number == 0)

    def _ended(self) -> bool:
        failed = [each.side for each in self.index.runs if each.state == "failed"]
        return self.interrupted or self._stopped or any(failed.count(side) >= FAILURES_MAX for side in failed)

    def _make_folder(self) -> None:
        os.umask(0o077)  # rows may hold prompts and replies: the runs' files are for this user alone
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(
                f"cannot write the output directory {self.folder}: {error.strerror}; choose another with --out DIR"
            ) from error
        self.index.write(self.folder)
        link_latest(self.folder.parent, self.folder.name)

    def _share_budget(self, runs: int) -> None:
        """A budget is for the command, not for each of its runs."""
        if (budget := self._plan.limits.budget_usd) is not None and runs > 1:
            self._say(f"budget_usd {budget:g} is shared: {budget / runs:g} USD for each of {runs} runs")
            base, candidate = self._sides
            share = budget / runs
            self._sides = Sides(base and _with_budget(base, share), _with_budget(candidate, share))

    def _one(self, turn: Turn, what: str, *, first: bool) -> None:
        plan = self._sides.plan(turn.side)
        name = plan.name if turn.side == "run" else f"{plan.name}-{turn.side}"
        plan = msgspec.structs.replace(
            plan, name=name, seed=turn.seed, output=msgspec.structs.replace(plan.output, dir=str(self.folder))
        )
        entry = RepeatedRun(run=run_id_of(name), side=turn.side, seed=turn.seed)
        self.index.runs.append(entry)
        self.index.write(self.folder)
        side = "" if turn.side == "run" else f", {turn.side}"
        self._say(f"{what}{side}: {measured.described(plan)}, seed {turn.seed}")
        order = RunOrder(plan, entry.run, os.getpid(), self._beside, quiet=self._repeat.quiet, warn=first)
        code, reason = self._process(order)
        run_dir = self.folder / entry.run
        (self.folder / LATEST).unlink(missing_ok=True)  # each run is there once
        if code == WORSE and turn.side != "base":  # its objectives; the base's are not what is judged
            self._slo_failed = True
        if code in (0, WORSE) or (self.interrupted and is_complete(run_dir)):
            entry.state = "done"
            entry.detail = failed_objectives(run_dir) if code == WORSE else ""
        elif code == INTERRUPTED or self.interrupted:
            entry.state = "interrupted"
        else:
            entry.state = "failed"
            why = reason or failure_of(run_dir)
            entry.detail = f"exit code {code}" + (f", {why}" if why else "")
            click.echo(f"lens: {what}{side} failed: {entry.detail}", err=True)
        self._stopped = code == USAGE
        self.index.write(self.folder)

    def _process(self, order: RunOrder) -> tuple[int, str]:
        """One run to its end: its exit code, negative for a signal, and why it failed. Signals are passed on to it."""
        process = started()
        assert process.stdin
        assert process.stdout
        passed = 0
        with process, selectors.DefaultSelector() as selector, suppress(BrokenPipeError):
            process.stdin.write(frame(order))
            process.stdin.close()
            ended = os.pidfd_open(process.pid)
            try:
                selector.register(ended, selectors.EVENT_READ)
                selector.register(self._interrupts.fd, selectors.EVENT_READ)
                while process.poll() is None:
                    selector.select()
                    self._interrupts.clear()
                    for number in self._interrupts.numbers[passed:]:
                        process.send_signal(number)
                        passed += 1
            finally:
                os.close(ended)
            return process.returncode, process.stdout.read().decode("utf-8", "replace")
        return process.returncode, ""

    def answer(self) -> int:
        """Prints and writes what the complete runs say."""
        code = self._compare() if self.index.base is not None else self._spread()
        self._say(str(self.folder))
        if code == 0 and any(each.state == "failed" for each in self.index.runs):
            return LensError.exit_code
        return code

    def _compare(self) -> int:
        sides = own_sides(self.folder)
        repeat = self._repeat
        # Whatever differs between the two was asked for: the plan is one, and so is the host.
        compared, runs = compare_runs(
            sides.base,
            sides.candidate,
            margin=repeat.margin,
            metrics=repeat.metrics,
            steady=self._plan.steady,
            across=True,
            first_notes=sides.notes,
        )
        self._keep(COMPARISON, ENCODER.encode(compared))
        write_files(repeat.junit, self.folder / HTML, compared, lambda: page_of(compared, runs))
        if not repeat.quiet or repeat.as_json or repeat.as_markdown:
            print_compared(compared, as_json=repeat.as_json, as_markdown=repeat.as_markdown)
        return self._code(sides, compared.state == "FAIL", decided=compared.state == "PASS")

    def _spread(self) -> int:
        sides = sides_of(self.folder)
        found = spread_of_runs(self.folder, sides.candidate, sides.notes, steady=self._plan.steady)
        self._keep(SPREAD, ENCODER.encode(found))
        if self._repeat.as_json:
            sys.stdout.buffer.write(ENCODER.encode(found) + b"\n")
            sys.stdout.buffer.flush()
        elif not self._repeat.quiet:
            from ...exporters.console.spread import print_spread

            print_spread(found)
        return self._code(sides, failed=False, decided=True)

    def _code(self, sides: SidesOf, failed: bool, *, decided: bool) -> int:
        if failed or self._slo_failed:
            return WORSE
        valid = all(read_report(run).verdict.state == "VALID" for run in (*sides.base, *sides.candidate))
        return 4 if self._repeat.strict and not (decided and valid) else 0

    def _keep(self, name: str, content: bytes) -> None:
        try:
            replace(self.folder / name, content + b"\n")
        except OSError as error:
            raise OutputError(f"{self.folder / name} cannot be written: {error.strerror}") from None

    def _say(self, text: str) -> None:
        if not self._repeat.quiet:
            click.echo(f"lens: {text}", err=True)


def _with_budget(plan: Plan, usd: float) -> Plan:
    return msgspec.structs.replace(plan, limits=msgspec.structs.replace(plan.limits, budget_usd=usd))
