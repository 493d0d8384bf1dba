"""HTML from values. Every value is escaped when it enters an element, unless it is `Markup` already."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from ..figures import MISSING


class Markup(str):
    """Text that is HTML already: everything in it that came from outside was escaped."""

    __slots__ = ()


NOTHING = Markup()


def escaped(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(parts: Iterable[object]) -> Markup:
    return Markup("".join(escaped(part) for part in parts))


def element(name: str, *children: object, classes: str = "", style: str = "", title: str = "", **others: str) -> Markup:
    """`<name class=classes style=style title=title>children</name>`; `others` are further attributes, `_` for `-`."""
    pairs = [("class", classes), ("style", style), ("title", title)]
    pairs += [(key.replace("_", "-"), value) for key, value in others.items()]
    attributes = "".join(f' {key}="{escaped(value)}"' for key, value in pairs if value)
    return Markup(f"<{name}{attributes}>{joined(children)}</{name}>")


def text_cell(value: object) -> Markup:
    """A cell of left-aligned text that may wrap; other cells are numbers."""
    return element("td", value, classes="wrap")


def row(cells: Iterable[object], classes: str = "") -> Markup:
    """A table row; a cell that is no `<td>` yet becomes one."""
    made = (c if isinstance(c, Markup) and c.startswith("<td") else element("td", c) for c in cells)
    return element("tr", *made, classes=classes)


def table(head: Iterable[object], rows: Iterable[Iterable[object]], classes: str = "") -> Markup:
    """A table with a head of `<th>`, unless `head` is empty. A row is a sequence of cells or made by `row`."""
    heads = [element("th", each, scope="col") for each in head]
    body = element("tbody", *(each if isinstance(each, Markup) else row(each) for each in rows))
    return element("table", *([element("thead", element("tr", *heads))] if heads else ()), body, classes=classes)


def card(*children: object, classes: str = "scroll") -> Markup:
    """A framed part of the page. One that scrolls sideways can be scrolled with the keyboard."""
    keyboard = {"tabindex": "0", "role": "group"} if "scroll" in classes else {}
    return element("div", *children, classes=f"card {classes}".strip(), **keyboard)


def details(summary: str, content: object) -> Markup:
    """A part that is closed until it is asked for."""
    return element("details", element("summary", summary, classes="small"), content)


def plain(value: Any) -> str:
    """A value of any JSON as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def document(title: str, *body: object) -> str:
    """A complete page without scripts, with the styles of the report in it."""
    css = Markup(resources.files("llm_latency_lens.exporters").joinpath("assets", "report.css").read_text("utf-8"))
    head = joined(
        (
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
            element("title", title),
            element("style", css),
        )
    )
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{element("main", *body)}</body>\n</html>\n'
