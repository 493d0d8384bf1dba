"""Templates over JSON values: types are kept, texts are filled, unknown columns are named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.template import Template

COLUMNS = {"prompt": 'say "hi"', "max_tokens": 7, "stream": True, "none": None, "rows": [1, {"a": 2}], "two words": "w"}
ROWS: list[tuple[str, Any, Any]] = [
    ("exactly a placeholder keeps the type", {"n": "{{max_tokens}}"}, {"n": 7}),
    ("a boolean", ["{{stream}}"], [True]),
    ("a list with objects", {"r": "{{rows}}"}, {"r": [1, {"a": 2}]}),
    ("blanks inside the braces", "{{ max_tokens }}", 7),
    ("a name with a blank", "{{two words}}", "w"),
    ("inside a text", "Q: {{prompt}}\nA:", 'Q: say "hi"\nA:'),
    ("two in a text", "{{max_tokens}} x {{stream}}", "7 x true"),
    ("an object inside a text is JSON", "r={{rows}}", 'r=[1, {"a": 2}]'),
    ("no value leaves its member out", {"a": {"n": "{{none}}"}, "b": 1}, {"a": {}, "b": 1}),
    ("no value in a list is null", ["{{none}}"], [None]),
    ("no value inside a text is nothing", "a{{none}}b", "ab"),
    ("null that the plan wrote stays", {"a": None}, {"a": None}),
    ("no placeholder", {"a": [1, 2.5, True, "x"]}, {"a": [1, 2.5, True, "x"]}),
    ("single braces are text", "{prompt}", "{prompt}"),
    ("empty braces are text", "{{}} {{ }}", "{{}} {{ }}"),
    ("keys are not filled", {"{{prompt}}": 1}, {"{{prompt}}": 1}),
    ("what was filled in is not read again", "{{brace}}", "{{prompt}}"),
]


@pytest.mark.parametrize(("why", "template", "filled"), ROWS, ids=[row[0] for row in ROWS])
def test_a_template_is_filled(why: str, template: Any, filled: Any) -> None:
    assert Template(template).render(COLUMNS | {"brace": "{{prompt}}"}) == filled


@pytest.mark.parametrize("template", ["{{question}}", {"a": ["x {{question}}"]}])
def test_an_unknown_column_is_named_with_those_there_are(template: Any) -> None:
    with pytest.raises(PlanError, match=r"\{\{question\}\}.*prompt, max_tokens, stream"):
        Template(template).render(COLUMNS)


def test_a_template_knows_its_columns() -> None:
    assert Template({"a": "{{x}}", "b": ["{{y}} and {{z}}", 3]}).names == {"x", "y", "z"}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(alphabet="ab{} "), st.lists, max_leaves=10))
def test_rendering_twice_gives_the_same_and_leaves_the_template_alone(value: Any) -> None:
    template = Template(value)
    columns = dict.fromkeys(template.names, "v")
    assert template.render(columns) == template.render(columns)


@given(st.text())
def test_any_value_goes_through_whole(value: str) -> None:
    assert Template({"p": "{{p}}"}).render({"p": value}) == {"p": value}
    assert Template("<{{p}}>").render({"p": value}) == f"<{value}>"
