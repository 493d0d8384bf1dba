"""Plan documents: values that know their line, and readers whose errors name the key, the place and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.planfile.document import Node, Source, dotted
from llm_latency_lens.engine.planfile.reading import read_document

YAML = """\
# a comment
name: nightly
targets:
  - name: a

    model: m
  - {name: b, model: n}
limits: {timeout: 5s,
         rpm: 10}
text: |
  two
  lines
"""
LINES: list[tuple[tuple[str | int, ...], int]] = [
    (("name",), 2),
    (("targets",), 3),
    (("targets", 0), 4),
    (("targets", 0, "name"), 4),
    (("targets", 0, "model"), 6),
    (("targets", 1), 7),
    (("targets", 1, "model"), 7),
    (("limits", "timeout"), 8),
    (("limits", "rpm"), 9),
    (("text",), 10),
]


def written(tmp_path: Path, text: str, name: str = "plan.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def node(value: Any, environ: dict[str, str] | None = None, path: tuple[str | int, ...] = ("limits", "rate")) -> Node:
    return Node(value, path, Source(), environ or {})


@pytest.mark.parametrize(("path", "line"), LINES, ids=[dotted(row[0]) for row in LINES])
def test_every_key_and_element_of_yaml_knows_its_line(tmp_path: Path, path: tuple[str | int, ...], line: int) -> None:
    _, source = read_document(written(tmp_path, YAML))
    assert source.location(path) == f"{dotted(path)}, plan.yaml line {line}"


def test_a_key_that_is_missing_is_placed_at_the_nearest_one_above(tmp_path: Path) -> None:
    _, source = read_document(written(tmp_path, YAML))
    assert source.location(("targets", 1, "provider")) == "targets[1].provider, plan.yaml line 7"
    assert source.location(("retry",)) == "retry, plan.yaml"


def test_a_flag_that_set_a_value_is_its_place(tmp_path: Path) -> None:
    _, source = read_document(written(tmp_path, YAML))
    source.flags[("limits", "timeout")] = "--timeout"
    assert source.location(("limits", "timeout")) == "--timeout"
    assert source.location(("limits", "timeout", "deeper")) == "--timeout"
    assert source.location(("limits", "rpm")) == "limits.rpm, plan.yaml line 9"


def test_yaml_toml_and_json_give_the_same_values(tmp_path: Path) -> None:
    value = {"name": "n", "phases": [{"requests": 3, "load": {"rate": 1.5}}], "seed": 7, "export": {"a": True}}
    toml = 'name = "n"\nseed = 7\nexport.a = true\n[[phases]]\nrequests = 3\nload = {rate = 1.5}\n'
    yaml = "name: n\nseed: 7\nexport: {a: yes}\nphases:\n- requests: 3\n  load: {rate: 1.5}\n"
    assert read_document(written(tmp_path, json.dumps(value), "p.json"))[0] == value
    assert read_document(written(tmp_path, toml, "p.toml"))[0] == value
    assert read_document(written(tmp_path, yaml, "p.yml"))[0] == value
    assert read_document(written(tmp_path, yaml, "p"))[0] == value  # any other ending is YAML


BROKEN: list[tuple[str, str, str, str]] = [
    ("YAML with a tab", "p.yaml", "a:\n\t- b\n", r"p.yaml is not YAML: .*line 2, column 1"),
    ("YAML that ends early", "p.yaml", "a: [1,\n", r"p.yaml is not YAML: .*line 2"),
    ("YAML with a key twice", "p.yaml", "a: 1\nb: 2\na: 3\n", r"a stands twice \(p.yaml lines 1 and 3\); keep one"),
    ("deep YAML with a key twice", "p.yaml", "x:\n- a: 1\n  a: 3\n", r"x\[0\].a stands twice \(p.yaml lines 2 and 3\)"),
    (
        "YAML that makes objects",
        "p.yaml",
        "a: !!python/object/apply:os.getcwd []\n",
        "p.yaml is not YAML: .*constructor",
    ),
    ("two documents", "p.yaml", "a: 1\n---\nb: 2\n", "p.yaml is not YAML: .*line 2"),
    ("TOML without a value", "p.toml", "a =\n", "p.toml is not TOML: .*line 1"),
    ("TOML with a key twice", "p.toml", "a = 1\na = 2\n", "p.toml is not TOML: .*line 2"),
    ("JSON with a comma", "p.json", '{"a": 1,\n}', r"p.json is not JSON: .*line 2, column 1|line 1, column"),
    ("JSON with a key twice", "p.json", '{"x": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
    ("JSON without end", "p.json", "[" * 100_000, "p.json is not"),
    ("a list", "p.yaml", "- a\n", "must be a mapping of plan keys .*not a list"),
    ("a text", "p.json", '"a"', "must be a mapping of plan keys .*not text"),
    ("null", "p.json", "null", "must be a mapping of plan keys .*not nothing"),
]


@pytest.mark.parametrize(("why", "name", "text", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, why: str, name: str, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        read_document(written(tmp_path, text, name))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the plan .*missing.yaml: No such file"):
        read_document(tmp_path / "missing.yaml")
    with pytest.raises(PlanError, match=r"cannot read the plan .*Is a directory"):
        read_document(tmp_path)
    (tmp_path / "p.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(PlanError, match=r"p.yaml is not UTF-8 text: .* at byte 6"):
        read_document(tmp_path / "p.yaml")


def test_an_empty_file_is_an_empty_plan(tmp_path: Path) -> None:
    assert read_document(written(tmp_path, "# nothing\n"))[0] == {}


VARIABLES = {"A": "1", "EMPTY": "", "B_2": "two"}
FILLED = [
    ("${A}", "1"),
    ("x${A}y${B_2}", "x1ytwo"),
    ("${NONE:-d}", "d"),
    ("${EMPTY:-d}", "d"),
    ("${NONE:-}", ""),
    ("${A:-d}", "1"),
    ("$${A}", "${A}"),
    ("$A", "$A"),
    ("${}", "${}"),
    ("${a-b}", "${a-b}"),
]


@pytest.mark.parametrize(("text", "filled"), FILLED)
def test_variables_are_filled_in(text: str, filled: str) -> None:
    assert node(text, VARIABLES).text() == filled
    assert node({"a": [text, 1]}, VARIABLES).plain() == {"a": [filled, 1]}


@pytest.mark.parametrize(("text", "state"), [("${NONE}", "not set"), ("${EMPTY}", "empty")])
def test_a_variable_that_is_missing_is_named_with_the_way_out(text: str, state: str) -> None:
    with pytest.raises(PlanError, match=rf"variable {text[2:-1]} is {state} \(limits.rate\); set it, or write"):
        node(text, VARIABLES).text()


READERS: list[tuple[str, Callable[[Node], Any], Any, Any]] = [
    ("an integer", Node.integer, 5, 5),
    ("an integer as text", Node.integer, "5", 5),
    ("an integer from a variable", Node.integer, "${A}", 1),
    ("an integer as 1e3", Node.integer, "1e3", 1000),
    ("a float that is whole", Node.integer, 5.0, 5),
    ("beyond what a float holds", Node.integer, "9007199254740993", 9007199254740993),
    ("a number", Node.number, "1.5", 1.5),
    ("a rate", Node.rate, "600/m", 10.0),
    ("a duration", Node.duration, "1m30s", 90 * 10**9),
    ("a duration from a variable", Node.duration, "${A}", 10**9),
    ("a size", Node.size, "1GiB", 1 << 30),
    ("true", Node.flag, True, True),
    ("a word", lambda n: n.choice(["wait", "drop"]), "drop", "drop"),
]
REFUSED: list[tuple[str, Callable[[Node], Any], Any, str]] = [
    ("half a number", Node.integer, 5.5, "rate must be an integer, got 5.5"),
    ("a flag is no number", Node.integer, True, "rate must be an integer, got True"),
    ("text", Node.integer, "five", "rate must be an integer, got 'five'"),
    ("nothing", Node.integer, None, "rate must be an integer, got None"),
    ("too much", Node.integer, 1 << 70, "rate must be <= 9,223,372,036,854,775,807"),
    ("too little", lambda n: n.integer(low=1), 0, "rate must be >= 1, got 0"),
    ("infinity", Node.number, float("inf"), "rate must be a number"),
    ("a flag", Node.number, False, "rate must be a number, got False"),
    ("beyond the end", lambda n: n.number(high=1), 2, "rate must be <= 1, got 2"),
    ("no rate", lambda n: n.rate(above=0), "-5/s", "rate must be > 0, got '-5/s'"),
    ("a unit that is none", Node.rate, "5/d", "rate is not understood: a rate is a number per second"),
    ("a list", Node.duration, [1], r"rate must be a number with a unit, got \[1\]"),
    ("no duration", lambda n: n.duration(above=0), "0s", "rate must be > 0, got '0s'"),
    ("longer than anybody waits", Node.duration, "40000d", "rate must be <= 36500d"),
    ("a number too large to hold", Node.duration, "1e999s", "rate must be <= 36500d"),
    ("no size", Node.size, "0", "rate must be > 0"),
    ("yes as text", Node.flag, "true", "rate must be true or false, got 'true'"),
    ("1 as a flag", Node.flag, 1, "rate must be true or false, got 1"),
    ("a word near one", lambda n: n.choice(["wait", "drop"]), "wiat", r"one of wait, drop \(did you mean 'wait'\?\)"),
    ("a number as a word", lambda n: n.choice(["wait"]), 5, "rate must be one of wait, got 5"),
    ("a number as text", Node.text, 5, "rate must be text, got 5"),
    ("empty text", lambda n: n.text(empty=False), "", "rate must not be empty"),
    ("no list", Node.items, "a", "rate must be a list, got 'a'"),
    ("no mapping", lambda n: n.mapping(["a"]), [1], r"rate must be a mapping, got \[1\]"),
    (
        "a key near one",
        lambda n: n.mapping(["timeout"]),
        {"timeuot": 1},
        r"unknown key 'timeuot' \(limits.rate.timeuot\); did you mean 'timeout'\?",
    ),
    ("a key near none", lambda n: n.mapping(["b", "a"]), {"xyz": 1}, "unknown key 'xyz' .*; known keys: a, b$"),
    ("a key that is no text", lambda n: n.mapping(None), {1: 2}, "has the key 1, which is no text"),
]


@pytest.mark.parametrize(("why", "reader", "value", "read"), READERS, ids=[row[0] for row in READERS])
def test_a_reader_gives_the_value(why: str, reader: Callable[[Node], Any], value: Any, read: Any) -> None:
    found = reader(node(value, VARIABLES))
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(("why", "reader", "value", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_reader_refuses_with_key_value_and_place(
    why: str, reader: Callable[[Node], Any], value: Any, message: str
) -> None:
    with pytest.raises(PlanError, match=message) as error:
        reader(node(value))
    assert "(limits.rate" in str(error.value)


def test_a_long_value_is_shortened_and_a_mapping_shown_by_its_keys() -> None:
    with pytest.raises(PlanError, match=r"got 'a{50,60}\.\.\. \(") as error:
        node("a" * 1000).integer()
    assert len(str(error.value)) < 150
    with pytest.raises(PlanError, match="got a mapping of user, password") as error:
        node({"user": "u", "password": "hunter2"}).text()
    assert "hunter2" not in str(error.value)


def test_values_under_hidden_keys_are_never_shown() -> None:
    source = Source()
    source.hidden = frozenset({"api_key"})
    for path in (("targets", 0, "api_key"), ("api_key", "deeper")):
        with pytest.raises(PlanError, match="must be true or false") as error:
            Node("hunter2", path, source, {}).flag()
        assert "hunter2" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50)
@given(json_values)
def test_readers_give_a_value_or_a_plan_error_for_anything(value: Any) -> None:
    messages = []
    for _, reader, _, _ in REFUSED:
        try:
            reader(node(value))
        except PlanError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
