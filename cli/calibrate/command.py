"""`lens calibrate`: how accurate this host measures, and how much a worker bears here, kept for later runs to quote."""

from __future__ import annotations

import os
import sys

import click


@click.command(short_help="Measure the accuracy and the limits of this host.")
@click.option("--quick", is_flag=True, help="Only the most important conditions, under a minute; else under ten.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout and nothing else.")
def calibrate(*, quick: bool, as_json: bool) -> int:
    """Measure the built-in provider under many loads and compare every event with the provider's own log.

    The result is printed and kept in $XDG_STATE_HOME/llm-latency-lens/calibration. Later runs of this version on this
    host quote it as their error budget, and are warned when a plan asks for more than was found possible.
    """
    from ...collectors.calibration.stored import store
    from ...engine.runs.interrupts import Interrupts
    from . import session

    def say(line: str) -> None:
        if not as_json:
            click.echo(line, err=True)

    try:
        with Interrupts():  # a signal raises here, and every process and file of the run in progress is removed
            extent = session.quick() if quick else session.full()
            calibration = session.Session(extent, say).run(quick=quick)
    except KeyboardInterrupt:
        click.echo("lens: interrupted; nothing was kept of this calibration", err=True)
        return 130
    path = store(calibration, os.environ)
    if as_json:
        from ...collectors.snapshot import ENCODER

        sys.stdout.buffer.write(ENCODER.encode(calibration) + b"\n")
        sys.stdout.buffer.flush()
    else:
        from ...exporters.console.calibration import print_calibration

        print_calibration(calibration)
        click.echo(str(path), err=True)
    return 0
