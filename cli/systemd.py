"""`lens systemd`: the units and dashboards that come with the package, for a machine without a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ..engine.errors import OutputError, PlanError

FOLDER: Final = Path(__file__).parent.parent / "systemd"


@click.command()
@click.option("--print", "name", metavar="NAME", help="Print this file on stdout.")
def systemd(name: str | None) -> None:
    """List the systemd units, the Grafana dashboards and the guide to them, or print one.

    \b
    lens systemd --print latency-lens@.service > /etc/systemd/system/latency-lens@.service
    lens systemd --print README.md
    """
    files = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*")) if path.is_file()}
    if not files:
        raise OutputError(f"{FOLDER} is empty: the package was installed without its data files; install it again")
    if name is None:
        click.echo("\n".join(files))
    elif name in files:
        click.echo(files[name].read_text(encoding="utf-8"), nl=False)
    else:
        raise PlanError(f"no file {name!r}; there are {', '.join(files)}")
