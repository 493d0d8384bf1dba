"""What the columns of a row mean, and which rows are none."""

from __future__ import annotations

import json
from base64 import b64decode
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.dialects import Prompt
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Workload
from llm_latency_lens.engine.workload.rows import Images, Rows
from tests.support_workload import asked, fixed, jsonl, source, texts

PNG = b"\x89PNG\r\n\x1a\nrest"


def prompt(folder: Path, row: dict[str, Any], **keys: Any) -> Prompt:
    return next(source(kind="file", path=jsonl(folder / "x.jsonl", [row]), **keys).items(0, 1)).prompt


def test_a_prompt_with_everything(tmp_path: Path) -> None:
    row = {"prompt": "hi", "system": "be kind", "max_tokens": 7, "id": [1]}
    assert prompt(tmp_path, row) == Prompt(({"role": "user", "content": "hi"},), "be kind", 7, row)


def test_messages_keep_their_roles_and_system_ones_become_the_system_prompt(tmp_path: Path) -> None:
    said = [("system", "one"), ("developer", "two"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    made = prompt(tmp_path, {"messages": [{"role": role, "content": text} for role, text in said]})
    assert made.system == "one\n\ntwo"
    assert [(message["role"], message["content"]) for message in made.messages] == said[2:]


def test_messages_may_hold_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    assert prompt(tmp_path, {"messages": [{"role": "user", "content": parts}]}).messages[0]["content"] == parts


def test_a_template_is_filled_from_any_columns(tmp_path: Path) -> None:
    row = {"text": "{{n}}", "n": 3, "more": {"a": [1]}}
    made = prompt(tmp_path, row, template="{{ n }} times '{{text}}' {{more}} {not} }}")
    assert made.messages[0]["content"] == """3 times '{{n}}' {"a":[1]} {not} }}"""
    assert made.columns == row


def test_a_template_without_a_column_is_refused(tmp_path: Path) -> None:
    for template in ("no column", "", "{{}}", "{{ }} {{x}}"):
        with pytest.raises(PlanError, match=r"workload.template"):
            prompt(tmp_path, {"x": "1"}, template=template)


def test_output_tokens_are_a_limit_too_and_rows_come_before_the_plan(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "output_tokens": 5}, {"prompt": "b"}])
    items = islice(source(kind="file", path=path, output_tokens=fixed(9)).items(0, 1), 2)
    assert [item.prompt.max_tokens for item in items] == [5, 9]


def test_a_csv_row_has_the_same_columns_as_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    messages = json.dumps([{"role": "user", "content": "said"}]).replace('"', '""')
    path.write_text(f'prompt,max_tokens,system,weight,messages\na,12,s,1,\nb,,,2,\n,,,0,"{messages}"\n')
    made = source(kind="file", path=str(path))
    found = {asked(item): item.prompt for item in islice(made.items(0, 1), 10)}
    assert (found["a"].system, found["a"].max_tokens) == ("s", 12)
    assert (found["b"].system, found["b"].max_tokens) == (None, None)


def test_text_files_have_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text('one\r\n\r\n  two, "quoted" \n{{three}}')
    assert texts(source(kind="file", path=str(path)), 3) == ["one", '  two, "quoted" ', "{{three}}"]
    assert texts(source(kind="file", path=str(path), template="Say: {{prompt}}"), 1) == ["Say: one"]


def test_images_are_urls_or_files_beside_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    row = {"prompt": "look", "image": ["https://x/dog.jpg", "cat.png", "data:image/gif;base64,R0lGOD"]}
    text, dog, cat, inline = prompt(tmp_path, row).messages[0]["content"]
    assert text == {"type": "text", "text": "look"}
    assert dog == {"type": "image_url", "image_url": {"url": "https://x/dog.jpg"}}
    assert inline["image_url"]["url"] == "data:image/gif;base64,R0lGOD"
    kind, encoded = cat["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert b64decode(encoded) == PNG


def test_an_image_is_estimated_as_an_image_not_as_its_base64(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG + bytes(1_000_000))
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "x" * 400, "image": "cat.png", "max_tokens": 50}])
    assert next(source(kind="file", path=path).items(0, 1)).estimate_tokens == 1000 + 100 + 50


def test_kept_images_are_bounded(tmp_path: Path) -> None:
    images = Images(tmp_path, kept_bytes_max=10_000)
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(PNG + bytes(3000))
        images.part(f"{i}.png")
        assert images.part(f"{i}.png") is images.part(f"{i}.png")
        assert images.kept_bytes <= 10_000


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"text": "x"}, "no prompt, no messages and no template .* the columns: text"),
    ({"prompt": ""}, "prompt must be text"),
    ({"prompt": 5}, "prompt must be text"),
    ({"prompt": "x", "system": 5}, "system must be text"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
    ({"prompt": "x", "max_tokens": True}, "max_tokens must be"),
    ({"prompt": "x", "output_tokens": "many"}, "output_tokens must be .* got 'many'"),
    ({"prompt": "x", "max_tokens": 1.5}, "max_tokens must be"),
    ({"prompt": "x", "weight": -1}, "weight must be a number >= 0, got -1"),
    ({"prompt": "x", "weight": "NaN"}, "weight must be"),
    ({"messages": {"role": "user"}}, "messages must be a list"),
    ({"messages": "hello"}, "messages must be a JSON list"),
    ({"messages": [{"role": "system", "content": "x"}]}, "must hold a user message"),
    ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\] must have role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, r"messages\[1\]"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\] must have .* content"),
    ({"messages": ["hi"]}, r"messages\[0\]"),
    ({"prompt": "x", "image": 5}, "image must be"),
    ({"prompt": "x", "image": "none.png"}, "no such image: .*none.png"),
    ({"messages": [{"role": "assistant", "content": "x"}], "image": "http://x"}, "needs a user message"),
]


def test_a_bad_row_is_told_by_file_line_and_fault(tmp_path: Path) -> None:
    for row, what in BAD_ROWS:
        path = jsonl(tmp_path / "x.jsonl", [{"prompt": "fine"}, row])
        with pytest.raises(PlanError, match=f"{path} line 2: .*{what}"):
            source(kind="file", path=path)


def test_a_column_that_the_template_wants_and_a_row_lacks_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"a": 1, "b": 2}, {"b": 2}])
    with pytest.raises(PlanError, match=r"line 2: no column 'a' for the template, there are: b"):
        source(kind="file", path=path, template="{{a}}")


def test_an_image_that_is_none_is_told_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("<svg/>")
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "x", "image": "x.png"}])
    made = source(kind="file", path=path)
    with pytest.raises(PlanError, match=r"line 1: .*x.png is no PNG, JPEG, GIF or WebP"):
        next(made.items(0, 1))


def test_a_bad_row_late_in_a_large_file_raises_when_its_slot_comes(tmp_path: Path) -> None:
    """Never skipped, never made up; the other workers, whose rows are good, go on."""
    good = [{"prompt": str(i)} for i in range(31)]
    path = jsonl(tmp_path / "x.jsonl", [*good, {"prompt": None}, *good])
    made = Rows(Workload(kind="file", path=path), 1, small_bytes=0, checked_rows=10)
    items = made.asks(1, 2, 0, 0)
    assert [ask.prompt.messages[0]["content"] for ask in islice(items, 15)] == [str(i) for i in range(1, 30, 2)]
    with pytest.raises(PlanError, match=r"x.jsonl line 32: no prompt"):
        next(items)
    assert len(list(islice(made.asks(0, 2, 0, 0), 16))) == 16
