"""`lens providers`: the APIs that can be measured, where they are, which key they take and what they do not report."""

from __future__ import annotations

import json
from typing import Any

import click

from ..engine.dialects.table import DIALECTS


def rows() -> list[dict[str, Any]]:
    """One row a dialect, in the order people read them."""
    return [
        {
            "provider": name,
            "base_url": dialect.default_base_url,
            "key_variable": dialect.key_variable,
            "asks": dialect.asks,
            "measures": dialect.measures,
            "limits": dialect.limits,
        }
        for name, dialect in DIALECTS.items()
    ]


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
