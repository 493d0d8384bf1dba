"""`lens view [DIR]`: the runs of a directory as local web pages."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import click

from ..engine.errors import PlanError
from ..engine.runs.interrupts import Interrupts

OPTION = "--listen"


@click.command(short_help="Show the runs of a directory as local web pages.")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    OPTION,
    "address",
    metavar="ADDRESS",
    default="",
    help="PORT, HOST:PORT or [IPV6]:PORT. [default: a free port on loopback; elsewhere the URL has a token]",
)
def view(folder: Path, address: str) -> int:
    """Serve the runs, sweeps, repeated runs and probes below DIR (default: here) until Ctrl-C.

    The list can be filtered; each report opens, two ticked runs are compared, and the runs of one plan are drawn as
    throughput against latency. Nothing is written.
    """
    if not folder.is_dir():
        raise PlanError(f"{folder} is not a directory; give one that holds runs, such as runs")
    with Interrupts() as interrupts, contextlib.suppress(KeyboardInterrupt):
        from aiohttp import web

        from ..exporters.web.library import Library
        from ..exporters.web.listen import listen
        from ..exporters.web.serving import Serving
        from ..exporters.web.view import application

        listener = listen(address, OPTION)
        library = Library(folder.resolve())
        serving = Serving(
            "view", lambda: application(library, listener), lambda runner: web.SockSite(runner, listener.socket)
        )
        try:
            serving.start()
            click.echo(f"lens: {listener.url} shows the runs of {folder}; Ctrl-C ends it", err=True)
            threading.Event().wait()
        finally:
            interrupts.defer()
            serving.close()
    return 0
