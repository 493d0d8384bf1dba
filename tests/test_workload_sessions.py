"""Sessions: each turn holds the replies that really came, users think, and no turn is asked twice."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.workload import Item
from tests.support_workload import fixed, jsonl, source, target

SECOND = 1_000_000_000


def first(folder: Path, record: dict[str, Any], **keys: Any) -> Item:
    return next(source(kind="sessions", path=jsonl(folder / "x.jsonl", [record]), **keys).items(0, 1))


def play(item: Item) -> list[tuple[int, list[str]]]:
    """All turns of the session with (think time, texts of the messages); replies are `reply <turn>`."""
    session = item.session
    assert session is not None
    played = [(0, [message["content"] for message in item.prompt.messages])]
    while following := session.next(f"reply {session.turn}"):
        think_ns, prompt = following
        played.append((think_ns, [message["content"] for message in prompt.messages]))
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["user", "assistant"] * session.turn + ["user"]
    return played


def test_ten_turns_grow_with_the_real_replies(tmp_path: Path) -> None:
    turns = [{"user": f"turn {i}", "think_s": i / 2, "max_tokens": 10 + i} for i in range(10)]
    item = first(tmp_path, {"id": "a", "system": "be kind", "turns": turns})
    assert item.prompt.system == "be kind"
    assert item.prompt.max_tokens == 10
    played = play(item)
    assert len(played) == 10
    history: list[str] = []
    for i, (think_ns, said) in enumerate(played):
        history.append(f"turn {i}")
        assert said == history
        assert think_ns == i * SECOND // 2
        history.append(f"reply {i}")


def test_the_system_prompt_and_each_turns_limit_stay(tmp_path: Path) -> None:
    record = {"system": "s", "max_tokens": 5, "turns": [{"user": "a"}, {"user": "b", "max_tokens": 7}, "c"]}
    item = first(tmp_path, record)
    assert item.session is not None
    limits = [item.prompt.max_tokens]
    while following := item.session.next("r"):
        limits.append(following[1].max_tokens)
        assert following[1].system == "s"
    assert limits == [5, 7, 5]


def test_messages_are_turns_whose_assistant_texts_are_placeholders(tmp_path: Path) -> None:
    said = [("system", "s"), ("user", "a"), ("assistant", "old"), ("user", "b"), ("assistant", "old")]
    item = first(tmp_path, {"messages": [{"role": role, "content": text} for role, text in said]})
    assert item.prompt.system == "s"
    assert play(item) == [(0, ["a"]), (0, ["a", "reply 0", "b"])]
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "old"}, {"from": "human", "value": "b"}]
    assert play(first(tmp_path, {"conversations": shared})) == [(0, ["a"]), (0, ["a", "reply 0", "b"])]


def test_the_plans_think_time_overrides_the_files(tmp_path: Path) -> None:
    record = {"turns": [{"user": "a"}, {"user": "b", "think_s": 9}, {"user": "c"}]}
    played = play(first(tmp_path, record, think_time_ns=3 * SECOND))
    assert [think_ns for think_ns, _ in played] == [0, 3 * SECOND, 3 * SECOND]


def test_a_session_ends_once_and_for_all(tmp_path: Path) -> None:
    session = first(tmp_path, {"turns": ["a", "b"]}).session
    assert session is not None
    assert (session.turn, session.next("r") is None) == (0, False)
    assert (session.turn, session.next("r")) == (1, None)
    assert (session.turn, session.next("r")) == (1, None)


def test_an_empty_reply_leaves_no_empty_message(tmp_path: Path) -> None:
    session = first(tmp_path, {"turns": ["a", "b"]}).session
    assert session is not None
    following = session.next("")
    assert following is not None
    assert [message["content"] for message in following[1].messages] == ["a", "b"]


def test_the_estimate_grows_with_the_history(tmp_path: Path) -> None:
    item = first(tmp_path, {"turns": ["x" * 400, "y" * 400]}, output_tokens=fixed(50))
    assert item.session is not None
    assert item.estimate_tokens == item.session.estimate_tokens == 100 + 50
    item.session.next("z" * 800)
    assert item.session.estimate_tokens == 100 + 200 + 100 + 50


def test_sessions_begin_again_as_new_ones_with_the_slot_as_id(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"turns": ["a", "b"]}, {"turns": ["c"]}])
    items = list(islice(source(kind="sessions", path=path).items(1, 2, 3), 3))
    assert [item.session.id for item in items if item.session] == [3, 5, 7]
    assert len({id(item.session) for item in items}) == 3
    assert items[0].prompt == items[1].prompt


def test_a_session_keeps_its_unique_prefix_over_its_turns(tmp_path: Path) -> None:
    for system in (None, "s"):
        made = source(
            (target(system=system),),
            kind="sessions",
            path=jsonl(tmp_path / "x.jsonl", [{"turns": ["a", "b"]}]),
            prefix="unique",
        )
        one, two = islice(made.items(0, 1), 2)
        assert one.session is not None
        following = one.session.next("r")
        assert following is not None
        prompt = following[1]
        assert (prompt.system, prompt.messages[0]) == (one.prompt.system, one.prompt.messages[0])
        assert (two.prompt.system, two.prompt.messages[0]) != (one.prompt.system, one.prompt.messages[0])


BAD_SESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x"}, "no turns, messages or conversations, the columns are: prompt"),
    ({"turns": []}, "turns must be a list of at least one"),
    ({"turns": [{"user": ""}]}, r"turns\[0\] must have the user's text"),
    ({"turns": ["a", {"text": "b"}]}, r"turns\[1\] must have the user's text"),
    ({"turns": [{"user": "a", "think_s": -1}]}, r"turns\[0\].think_s must be seconds >= 0, got -1"),
    ({"turns": [{"user": "a", "max_tokens": 0}]}, "max_tokens must be"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "must alternate, user first"),
    ({"messages": [{"role": "user", "content": "a"}] * 2}, "must alternate"),
    ({"conversations": [{"from": "nobody", "value": "a"}]}, "must have role"),
    ({"conversations": "a"}, "must be a list of objects"),
]


def test_a_bad_session_is_told_by_file_and_line(tmp_path: Path) -> None:
    for record, what in BAD_SESSIONS:
        path = jsonl(tmp_path / "x.jsonl", [{"turns": ["a"]}, record])
        with pytest.raises(PlanError, match=f"x.jsonl line 2: .*{what}"):
            source(kind="sessions", path=path)
