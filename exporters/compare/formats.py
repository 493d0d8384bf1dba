"""A comparison as Markdown for a pull request, and as JUnit XML for a CI. Pure."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from ...collectors.compare import Compared, Comparison
from .words import HEADS, cells, described, label, sentence, sides

_ALIGN: Final = ("---", "---", "---:", "---:", "---:", "---:", "---")
_MARKED: Final = re.compile(r"([\\`*_|<>\[\]#~])")
_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def markdown(compared: Compared) -> str:
    """The sentence, one table, the notes and the runs. Names from plans cannot make markup."""
    rows = [HEADS, _ALIGN, *(tuple(map(_plain, cells(each))) for each in compared.comparisons)]
    bold = [_bold(row) for row in rows]
    lines = [f"**{_plain(sentence(compared))}**", "", *(f"| {' | '.join(row)} |" for row in bold), ""]
    lines += [f"- {_plain(note.detail)}" for note in compared.notes]
    return "\n".join([*lines, "", f"<sub>{_plain(sides(compared))}</sub>", ""])


def _bold(row: tuple[str, ...]) -> tuple[str, ...]:
    return (*row[:-1], f"**{row[-1]}**") if row[-1] == "worse" else row


def _plain(text: str) -> str:
    return _MARKED.sub(r"\\\1", " ".join(text.split()))


def junit(compared: Compared) -> bytes:
    """One test case per comparison: worse is a failure, undecided is skipped."""
    verdicts = [each.verdict for each in compared.comparisons]
    suite = ElementTree.Element(
        "testsuite",
        name="lens compare",
        tests=str(len(verdicts)),
        failures=str(verdicts.count("worse")),
        skipped=str(verdicts.count("undecided")),
        errors="0",
    )
    for comparison in compared.comparisons:
        _case(suite, comparison)
    notes = [sentence(compared), *(f"{note.code}: {note.detail}" for note in compared.notes), sides(compared)]
    ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(notes))
    document = ElementTree.Element("testsuites")
    document.append(suite)
    ElementTree.indent(document)
    text: bytes = ElementTree.tostring(document, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(suite: ElementTree.Element, comparison: Comparison) -> None:
    name = f"{comparison.metric}.{comparison.statistic}"
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(comparison.target), name=name)
    text = _xml(described(comparison))
    if comparison.verdict == "worse":
        ElementTree.SubElement(case, "failure", message=text).text = " | ".join(map(_xml, cells(comparison)))
    elif comparison.verdict == "undecided":
        ElementTree.SubElement(case, "skipped", message=f"undecided: {text}")
    else:
        ElementTree.SubElement(case, "system-out").text = f"{comparison.verdict}: {_xml(label(comparison))}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
