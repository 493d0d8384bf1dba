"""The pages of `lens view`: the list, a report, a comparison of two runs, the curve of a plan family.

A page names a run by its path among those that the library has found; any other name is a 404. What a directory cannot
show is a page that says why.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from ...engine.errors import LensError, OutputError
from ...engine.runs.rundir import HTML, SUMMARY
from ..compare.page import page_of as comparison_page
from ..compare.repeated import own_sides, read_repetition, sides_of
from ..compare.run import compare_runs
from ..history import runs_of
from ..html.page import report_html
from ..rundir import damage_named, finished
from ..sweep.files import read_sweep
from ..sweep.page import page_of as sweep_page
from .curve import curve_page
from .guard import guarded, html, prefix_of
from .library import Entry, Library
from .listen import Listener
from .listing import link, listing_page, message_page

MARGIN: Final = 0.05  # of a comparison, as of `lens compare`
RUNS_MAX: Final = 8  # side by side in one report
REFRESH: Final = '<meta http-equiv="refresh" content="5">'  # of the report of a run that goes on


class Problem(Exception):
    """What a page says instead, and its HTTP status."""

    def __init__(self, status: int, text: str, *more: object) -> None:
        super().__init__(text)
        self.status = status
        self.more = more


def application(library: Library, listener: Listener) -> web.Application:
    """Serves the pages of a library. Pages are made in threads, one at a time where they ask the library."""
    lock = threading.Lock()

    def entries() -> dict[str, Entry]:
        with lock:
            return library.entries()

    def page(make: Callable[[web.Request], str]) -> Callable[[web.Request], object]:
        async def answer(request: web.Request) -> web.Response:
            try:
                return html(await asyncio.to_thread(make, request))
            except Problem as problem:
                return html(message_page("Not shown", str(problem), *problem.more), status=problem.status)
            except (LensError, RecursionError) as error:
                return html(message_page("Not shown", str(error)), status=500)

        return answer

    def listed(_: web.Request) -> str:
        return listing_page(str(library.folder), entries().values())

    def report(request: web.Request) -> str:
        entry = _named(entries(), request.query.get("run", ""))
        return report_of(library.folder / entry.path, entry)

    def compare(request: web.Request) -> str:
        known = entries()
        chosen = [_named(known, each) for each in request.query.getall("run", [])]
        if len(chosen) != 2:
            raise Problem(400, f"Tick two runs to compare; {len(chosen)} are ticked.")
        chosen.sort(key=lambda each: each.started_at)  # the older is the base
        return _comparison(library.folder, chosen[0].path, chosen[1].path, across="across" in request.query)

    def curve(request: web.Request) -> str:
        known = entries()
        entry = _named(known, request.query.get("run", ""))
        if not entry.family:
            raise Problem(404, f"{entry.path} has no plan, so that its family is not known.")
        return curve_page(entry, known.values())

    app, prefix = guarded(listener), prefix_of(listener)
    for path, make in (("/", listed), ("/report", report), ("/compare", compare), ("/curve", curve)):
        app.router.add_get(f"{prefix}{path}", page(make))  # type: ignore[arg-type]  # aiohttp wants a coroutine function
    return app


def report_of(folder: Path, entry: Entry) -> str:
    """The page of one entry: its report.html where that is current, else made now. Raises LensError and Problem."""
    if entry.state == "damaged":  # perhaps by a pipe of the summary's name, whose reader would wait forever
        raise Problem(500, f"{folder} {entry.problem}")
    with damage_named(folder):
        kept = _kept(folder, entry)
        if kept:
            return kept
        if entry.kind == "run":
            page = report_html([folder])
            return page.replace("<head>", f"<head>\n{REFRESH}", 1) if entry.state == "running" else page
        if entry.kind == "probe":
            return report_html([each for each in runs_of(folder) if finished(each)][-RUNS_MAX:] or runs_of(folder)[-1:])
        if entry.kind == "repeated runs":
            if read_repetition(folder).base is not None:
                sides = own_sides(folder)
                return comparison_page(*compare_runs(*sides[:2], margin=MARGIN, across=True, first_notes=sides.notes))
            runs = sides_of(folder).candidate[:RUNS_MAX]
            if runs:
                return report_html(runs)
            raise OutputError(f"{folder} has no complete run")
        return sweep_page([(folder.name, read_sweep(folder))])


def _kept(folder: Path, entry: Entry) -> str:
    """report.html as it is on disk; empty where there is none, or one older than what it shows."""
    path = folder / HTML
    try:
        if not path.is_file() or path.is_symlink() or entry.state == "running":
            return ""
        if entry.kind == "run" and path.stat().st_mtime_ns < (folder / SUMMARY).stat().st_mtime_ns:
            return ""
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _named(entries: dict[str, Entry], path: str) -> Entry:
    if path not in entries:
        raise Problem(404, f"There is no run {path!r} in this directory.")
    return entries[path]


def _comparison(folder: Path, base: str, candidate: str, *, across: bool) -> str:
    with damage_named(folder):
        try:
            return comparison_page(*compare_runs([folder / base], [folder / candidate], margin=MARGIN, across=across))
        except LensError as error:
            if across or "--across" not in str(error):
                raise
            text = str(error).partition("; --across")[0] + "."
            anyway = link("Compare them all the same", "compare", run=(base, candidate), across="1")
            raise Problem(409, text, anyway) from error
