"""ShareGPT conversations as they are found in the wild."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.workload import Source
from tests.support_workload import asked, jsonl, source

Turns = list[tuple[str, Any]]


def conversation(turns: Turns) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def array(path: Path, conversations: list[Turns]) -> Source:
    path.write_text(json.dumps([conversation(turns) for turns in conversations], indent=2))
    return source(kind="sharegpt", path=str(path))


def test_the_first_human_turn_is_asked_with_a_limit_as_long_as_its_reply(tmp_path: Path) -> None:
    made = array(
        tmp_path / "x.json",
        [[("human", "one"), ("gpt", "x" * 400), ("human", "later")], [("human", "two"), ("gpt", "y")]],
    )
    items = list(islice(made.items(0, 1), 3))
    assert [(asked(item), item.prompt.max_tokens) for item in items] == [("one", 100), ("two", 1), ("one", 100)]


def test_a_tokenizer_counts_the_reply(tmp_path: Path) -> None:
    pytest.importorskip("toktok")
    path = jsonl(tmp_path / "x.jsonl", [conversation([("human", "one"), ("gpt", "one two three four five")])])
    assert next(source(kind="sharegpt", path=path, tokenizer="o200k_base").items(0, 1)).prompt.max_tokens == 5


PASSED_OVER: list[tuple[Turns, str]] = [
    ([], "empty"),
    ([("human", "alone")], "no reply"),
    ([("gpt", "first"), ("human", "second")], "the model begins"),
    ([("human", "one"), ("human", "two"), ("gpt", "x")], "two human turns"),
    ([("human", " "), ("gpt", "x")], "an empty question"),
    ([("human", "one"), ("gpt", "")], "an empty reply"),
    ([("human", None), ("gpt", "x")], "no text"),
]


def test_conversations_that_are_no_question_and_reply_are_passed_over(tmp_path: Path) -> None:
    good = [[("human", f"q{i}"), ("gpt", "a")] for i in range(len(PASSED_OVER))]
    mixed = [turns for pair in zip((bad for bad, _ in PASSED_OVER), good, strict=True) for turns in pair]
    made = array(tmp_path / "x.json", mixed)
    count = len(good)
    assert [asked(item) for item in islice(made.items(0, 1), 2 * count)] == [f"q{i % count}" for i in range(2 * count)]


def test_other_names_of_the_speakers_and_a_system_turn_are_known(tmp_path: Path) -> None:
    for human, model in (("user", "assistant"), ("human", "chatgpt"), ("user", "bing")):
        made = array(tmp_path / "x.json", [[("system", "be kind"), (human, "q"), (model, "a")]])
        assert asked(next(made.items(0, 1))) == "q"
    roles = [{"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    assert asked(next(source(kind="sharegpt", path=jsonl(tmp_path / "y.jsonl", roles)).items(0, 1))) == "q"


NO_SHAREGPT: list[tuple[str, str]] = [
    ("[]", "holds no conversation"),
    ('[{"conversations": [{"from": "human", "value": "x"}]}]', "holds no conversation"),
    ('[{"id": 1, "items": []}]', "line 1: no conversations, the columns are: id, items"),
    ('[\n{"conversations": ["x"]}]', "line 2: a turn must be an object"),
    ('{"conversations": {}}', "no conversations"),
]


def test_a_file_that_is_no_sharegpt_is_refused(tmp_path: Path) -> None:
    for content, what in NO_SHAREGPT:
        path = tmp_path / "x.json"
        path.write_text(content)
        with pytest.raises(PlanError, match=what):
            source(kind="sharegpt", path=str(path))
