"""JSON Pointers against RFC 6901's own examples, and what they do where the way ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.pointer import found_at, steps_of

DOCUMENT: dict[str, Any] = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}
EXAMPLES = [  # RFC 6901, section 5
    ("", DOCUMENT),
    ("/foo", ["bar", "baz"]),
    ("/foo/0", "bar"),
    ("/", 0),
    ("/a~1b", 1),
    ("/c%d", 2),
    ("/e^f", 3),
    ("/g|h", 4),
    ("/i\\j", 5),
    ('/k"l', 6),
    ("/ ", 7),
    ("/m~0n", 8),
]
NOWHERE = [
    ("/bar", "no such member"),
    ("/foo/2", "beyond the list"),
    ("/foo/01", "leading zeros are no index"),
    ("/foo/-", "the element after the last"),
    ("/foo/-1", "not counted from the end"),
    ("/foo/٣", "digits of another script"),
    ("/foo/bar", "a name in a list"),
    ("/foo/0/1", "inside a text"),
    ("/foo/" + "9" * 5000, "more digits than int() takes"),
    ("/ /0", "inside a number"),
]


@pytest.mark.parametrize(("pointer", "value"), EXAMPLES)
def test_the_rfcs_examples_hold(pointer: str, value: Any) -> None:
    assert found_at(steps_of(pointer), DOCUMENT) == value


@pytest.mark.parametrize(("pointer", "why"), NOWHERE, ids=[row[1] for row in NOWHERE])
def test_where_the_way_ends_nothing_is_found(pointer: str, why: str) -> None:
    assert found_at(steps_of(pointer), DOCUMENT) is None


def test_tilde_one_is_read_before_tilde_zero() -> None:
    assert steps_of("/~01") == ("~1",)


@pytest.mark.parametrize("pointer", ["foo", "#/foo", "/a~", "/a~2", "$.foo"])
def test_what_is_no_pointer_says_so(pointer: str) -> None:
    with pytest.raises(PlanError, match="JSON Pointer"):
        steps_of(pointer)


@given(st.lists(st.text()))
def test_any_names_survive_escaping(names: list[str]) -> None:
    pointer = "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)
    assert steps_of(pointer) == tuple(names)
