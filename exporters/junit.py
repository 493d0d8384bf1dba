"""JUnit XML, as the test reports of CI systems read it (the schema of Jenkins' xunit plugin). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple
from xml.etree import ElementTree

_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


class Case(NamedTuple):
    """One test case. A failure is what was judged and did not hold, an error what could not be judged."""

    group: str
    name: str
    state: Literal["passed", "failure", "error", "skipped"]
    message: str
    detail: str = ""  # the text of a failure or an error


def document(name: str, cases: Sequence[Case], notes: Sequence[str]) -> bytes:
    """One test suite with the cases; the notes are its output. Characters that XML cannot hold become `?`."""
    states = [case.state for case in cases]
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(name),
        tests=str(len(cases)),
        failures=str(states.count("failure")),
        skipped=str(states.count("skipped")),
        errors=str(states.count("error")),
    )
    for case in cases:
        entry = ElementTree.SubElement(suite, "testcase", classname=_xml(case.group), name=_xml(case.name))
        if case.state == "passed":
            ElementTree.SubElement(entry, "system-out").text = _xml(case.message)
        else:
            outcome = ElementTree.SubElement(entry, case.state, message=_xml(case.message))
            outcome.text = _xml(case.detail) or None
    ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(notes))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
