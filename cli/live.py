"""The options of `lens run` for the live page: `--live [ADDRESS]` and `--live-control`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..engine.errors import PlanError

if TYPE_CHECKING:
    from .processes.export import Live

Command = TypeVar("Command", bound=Callable[..., Any])

OPTION: Final = "--live"
OPTIONS: Final = (
    click.option(
        OPTION,
        "live",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value="",
        help="Serve the report while the run goes on, at PORT, HOST:PORT or [IPV6]:PORT. [default: a free port on "
        "loopback; elsewhere the URL has a token]",
    ),
    click.option("--live-control", is_flag=True, help="With --live: the page can stop the run, as Ctrl-C does."),
)


def live_options(command: Command) -> Command:
    """Adds the options to a click command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def address_and_plan(live: str | None, plan_path: str | None) -> tuple[str | None, str | None]:
    """`lens run --live plan.yaml`: what stands after the option is a file that exists, and no plan was given: it is the
    plan."""
    if live and plan_path is None and Path(live).is_file():
        return "", live
    return live, plan_path


@contextmanager
def live_page(address: str | None, *, control: bool, repeated: bool) -> Iterator[Live | None]:
    """Binds the address, before anything is started. Raises PlanError."""
    if address is None:
        if control:
            raise PlanError(f"--live-control is for the live page; give {OPTION} too")
        yield None
        return
    if repeated:
        raise PlanError(f"{OPTION} shows one run, and --repeat makes several; leave one of them")
    from ..exporters.web.listen import listen
    from .processes.export import Live

    listener = listen(address, OPTION)
    with listener.socket:
        yield Live(listener, control)
