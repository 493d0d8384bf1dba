"""`lens schema plan|summary`: the JSON Schema of a plan file, for editors, and of summary.json."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("what", type=click.Choice(["plan", "summary"]))
def schema(what: str) -> None:
    """Print a JSON Schema on stdout.

    An editor that knows YAML schemas completes and checks plan files with it: `lens schema plan > plan.schema.json`,
    then `# yaml-language-server: $schema=plan.schema.json` as the first line of the plan.
    """
    import msgspec

    from ..collectors.snapshot import Report
    from ..engine.planfile.schema import plan_schema

    found = plan_schema() if what == "plan" else msgspec.json.schema(Report)
    click.echo(json.dumps(found, indent=1))
