"""The result of a run for programs: summary.json with its run directory."""

from __future__ import annotations

import os
from pathlib import Path

from ...collectors.snapshot import Report
from ...exporters.rundir import read_report
from .tables import Requests, Ticks


class Summary(Report, kw_only=True):
    """The report of one run, as summary.json has it: `verdict.state`, `metrics["ttft_ms"].p99`, `slo`, `targets`, ...

    Beside it `run_dir`, where the files are, `rows` and `ticks` for what is in them, and `messages`: what the run had to
    say on stderr, as the warnings of `lens run`. Latencies in ms; a value that is not known is None.
    """

    run_dir: Path
    messages: tuple[str, ...] = ()

    def __repr__(self) -> str:
        ttft = self.metrics.get("ttft_ms")
        times = f", TTFT p50 {ttft.p50:.4g} ms" if ttft and ttft.p50 is not None else ""
        requests = f"{self.requests.ok} ok of {self.requests.sent} sent"
        return f"Summary({self.run.id}, {self.verdict.state}, {requests}{times}, {str(self.run_dir)!r})"

    @property
    def rows(self) -> Requests:
        """Every request, to iterate or as a table. (`requests` are the report's totals.)"""
        return Requests(self.run_dir)

    @property
    def ticks(self) -> Ticks:
        """The time series, to iterate or as a table."""
        return Ticks(self.run_dir)

    def show(self) -> None:
        """Prints the report on stdout, as `lens report` does."""
        from ...exporters.console.final import print_final

        print_final(self)


def load(run_dir: str | os.PathLike[str]) -> Summary:
    """The result of a finished run, or what is known so far of one that goes on. Raises OutputError."""
    return summary_of(Path(run_dir))


def summary_of(run_dir: Path, messages: tuple[str, ...] = ()) -> Summary:
    """The Summary of a run directory. Raises OutputError."""
    report = read_report(run_dir)
    fields = {name: getattr(report, name) for name in Report.__struct_fields__}
    return Summary(**fields, run_dir=run_dir, messages=messages)
