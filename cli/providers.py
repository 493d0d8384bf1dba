"""`lens providers`: the APIs that can be measured, where they are, which key they take and what they do not report."""

from __future__ import annotations

import json
from typing import Any

import click

from ..engine.dialects.table import dialect_names, dialect_of
from ..engine.errors import PlanError


def rows() -> list[dict[str, Any]]:
    """One row a dialect, in the order people read them: ours, then those of installed packages."""
    return [_row(name) for name in dialect_names()]


def _row(name: str) -> dict[str, Any]:
    """One dialect; of a package that cannot be used, the reason in the place of its limits."""
    try:
        dialect = dialect_of(name)
    except PlanError as error:
        return dict.fromkeys(("base_url", "key_variable"), None) | {
            "provider": name,
            "asks": "cannot be used",
            "measures": "",
            "limits": str(error),
        }
    return {
        "provider": name,
        "base_url": dialect.default_base_url,
        "key_variable": dialect.key_variable,
        "asks": dialect.asks,
        "measures": dialect.measures,
        "limits": dialect.limits,
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def providers(as_json: bool) -> None:
    """List the APIs that can be measured: address, key variable, what is measured, known limits.

    Any server that speaks OpenAI's API (vLLM, SGLang, llama.cpp, Groq, ...) is provider openai with its own --base-url.
    """
    if as_json:
        click.echo(json.dumps(rows(), indent=2))
        return
    from rich.console import Console  # 0.1 s: only where a table is wanted
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("provider", "base URL, request", "key", "measured beside its times", "known limits"):
        table.add_column(head, overflow="fold")
    for row in rows():
        address = f"{row['base_url'] or '(give base_url)'}\n{row['asks']}"
        key = row["key_variable"] or "(api_key, if any)"
        table.add_row(row["provider"], address, key, row["measures"], row["limits"])
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    console.print(table)
