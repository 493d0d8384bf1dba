"""Items are pure functions of (seed, phase, slot): whoever makes them, whenever, however the file is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Length, Plan, Workload
from llm_latency_lens.engine.runs.control import salted
from llm_latency_lens.engine.workload.rows import Rows
from tests.support_workload import asked, content_of, fixed, jsonl, numbered, source, target, texts

TARGETS = (target("a", weight=2), target("b", weight=1), target("c", weight=0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workload")
    numbered(folder / "rows.jsonl", 23)
    jsonl(folder / "weighted.jsonl", ({"prompt": f"p{i}", "weight": i} for i in range(1, 8)))
    (folder / "rows.csv").write_text("prompt,n\n" + "".join(f"prompt {i},{i}\n" for i in range(17)))
    pairs = [[{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": "a" * i * 9}] for i in range(11)]
    (folder / "sharegpt.json").write_text(json.dumps([{"conversations": pair} for pair in pairs]))
    trace = ({"timestamp": i * 7, "input_length": 600 + i, "output_length": i, "hash_ids": [1, i]} for i in range(19))
    jsonl(folder / "trace.jsonl", trace)
    jsonl(folder / "sessions.jsonl", ({"turns": [{"user": f"u{i}"}, {"user": "more"}]} for i in range(13)))
    return folder


def workloads(folder: Path) -> Iterator[dict[str, Any]]:
    drawn = Length(kind="normal", mean=40, stddev=20)
    yield {"kind": "prompt", "output_tokens": drawn}
    yield {"kind": "prompt"}
    yield {"kind": "prompt", "prefix": "unique"}
    yield {"kind": "synthetic", "input_tokens": drawn, "output_tokens": drawn, "prefix": "shared", "prefix_tokens": 9}
    for order in ("sequential", "shuffle", "random"):
        for name in ("rows.jsonl", "rows.csv", "weighted.jsonl"):
            yield {"kind": "file", "path": str(folder / name), "order": order, "output_tokens": drawn}
        yield {"kind": "sharegpt", "path": str(folder / "sharegpt.json"), "order": order}
        yield {"kind": "sessions", "path": str(folder / "sessions.jsonl"), "order": order, "output_tokens": drawn}
    yield {"kind": "trace", "path": str(folder / "trace.jsonl")}


KINDS = 20


def test_all_kinds_are_tried(folder: Path) -> None:
    """A kind that is not in the list is not tested below."""
    assert len(list(workloads(folder))) == KINDS


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    kind=st.integers(0, KINDS - 1),
    workers=st.integers(1, 7),
    first=st.integers(0, 200),
    phase=st.integers(0, 2),
    count=st.integers(1, 60),
)
def test_the_union_over_any_number_of_workers_is_the_same(
    kind: int, workers: int, first: int, phase: int, count: int, folder: Path
) -> None:
    """Two runs of one plan on two hosts must ask the same."""
    workload = list(workloads(folder))[kind]
    wanted = [content_of(item) for item in islice(source(TARGETS, **workload).items(0, 1, phase=phase), first + count)]
    for worker in range(workers):
        slots = [slot for slot in range(first, first + count) if slot % workers == worker]
        items = islice(source(TARGETS, **workload).items(worker, workers, first, phase=phase), len(slots))
        assert [content_of(item) for item in items] == [wanted[slot] for slot in slots]


@pytest.mark.parametrize("kind", [0, 3])
def test_another_seed_or_phase_draws_otherwise(kind: int, folder: Path) -> None:
    """A warm-up that asks what is then measured has filled its cache."""
    workload = list(workloads(folder))[kind]
    runs = [
        [content_of(item) for item in islice(source(TARGETS, seed, **workload).items(0, 1, phase=phase), 50)]
        for seed, phase in ((1, 0), (2, 0), (1, 1), (1, 0))
    ]
    assert runs[0] == runs[3]
    assert runs[0] != runs[1] != runs[2] != runs[0]


def test_a_file_is_read_in_order_and_begins_again(tmp_path: Path) -> None:
    """A run may be longer than its file."""
    path = numbered(tmp_path / "x.jsonl", 5)
    assert texts(source(kind="file", path=path), 12) == [f"prompt {i % 5}" for i in range(12)]


def test_every_pass_of_a_shuffle_has_every_row_once_in_another_order(tmp_path: Path) -> None:
    """Sampling with replacement by accident would leave out a third of the rows."""
    path = numbered(tmp_path / "x.jsonl", 300)
    read = texts(source(kind="file", path=path, order="shuffle"), 1200)
    passes = [read[at : at + 300] for at in range(0, 1200, 300)]
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 300 for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_a_resumed_worker_passes_over_complete_passes_without_reading_them_again(tmp_path: Path) -> None:
    """A worker that takes over late in a soak must not read for hours."""
    path = numbered(tmp_path / "x.jsonl", 10)
    made = source(kind="file", path=path)
    first = 10**12 + 3  # reading a tera of passes would not end
    assert texts(made, 2, first % 4, 4, first) == [f"prompt {first % 10}", f"prompt {(first + 4) % 10}"]


@pytest.mark.parametrize(("order", "allowed"), [("sequential", 8), ("shuffle", 260), ("random", 260)])
def test_rows_come_in_proportion_to_their_weights(order: str, allowed: int, tmp_path: Path) -> None:
    """Spread evenly when sequential; within 4 standard deviations of a draw otherwise."""
    rows = [{"prompt": "a", "weight": 1}, {"prompt": "b", "weight": 3}, {"prompt": "c", "weight": 0}, {"prompt": "d"}]
    path = jsonl(tmp_path / "x.jsonl", rows)
    counted = Counter(texts(source(kind="file", path=path, order=order), 20_000))
    assert set(counted) == {"a", "b", "d"}
    assert abs(counted["a"] - 4000) <= allowed
    assert abs(counted["b"] - 12_000) <= allowed


def test_weighted_rows_are_not_tied_to_targets(tmp_path: Path) -> None:
    """A target that always gets the same rows is not compared with the others."""
    path = jsonl(tmp_path / "x.jsonl", ({"prompt": p, "weight": 1} for p in "ab"))
    made = source((target("x"), target("y")), kind="file", path=path)
    joint = Counter((item.target, asked(item)) for item in islice(made.items(0, 1), 8000))
    assert all(abs(count - 2000) < 60 for count in joint.values())
    assert len(joint) == 4


def test_weights_in_a_file_too_large_to_read_through_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """All weights must be known before the first draw."""
    path = jsonl(tmp_path / "x.jsonl", ({"prompt": p, "weight": 1} for p in "ab"))
    with pytest.raises(PlanError, match=r"x.jsonl line 1: weights need a file of at most 0 MiB.*repeat the rows"):
        Rows(Workload(kind="file", path=path), 1, small_bytes=0)


def test_one_constant_prompt_is_the_same_object_for_every_slot_of_a_target() -> None:
    """The feed renders it once."""
    for workload in ({}, {"output_tokens": fixed(9)}, {"prefix": "shared", "prefix_tokens": 20}):
        items = list(islice(source(TARGETS, **workload).items(1, 3), 200))
        assert len({(item.target, id(item.prompt)) for item in items}) == 3
        assert Counter(item.target for item in items) == Counter(
            item.target for item in islice(source(TARGETS, prefix="unique").items(1, 3), 200)
        )


ESTIMATES: list[tuple[dict[str, Any], dict[str, Any], int | None]] = [
    ({"prompt": "x" * 400}, {}, 100 + 256),
    ({"prompt": "x" * 400, "output_tokens": fixed(50)}, {}, 100 + 50),
    ({"prompt": "x" * 400}, {"max_tokens": 33}, 100 + 33),
    ({"prompt": "x" * 400, "output_tokens": fixed(50)}, {"max_tokens": 33}, 100 + 50),
    ({"prompt": "x" * 400}, {"generationConfig": {"maxOutputTokens": 44}}, 100 + 44),
    ({"prompt": "x" * 400, "calibration": 1.5}, {}, 150 + 256),
    ({"prompt": "x" * 400, "prefix": "shared", "prefix_tokens": 50}, {"max_tokens": 10}, None),
    ({"kind": "synthetic", "input_tokens": fixed(77), "output_tokens": fixed(5)}, {}, 77 + 5),
    ({"kind": "synthetic", "input_tokens": fixed(77), "prefix": "shared", "prefix_tokens": 23}, {}, 100 + 256),
]


def test_the_estimate_counts_the_prompt_and_the_longest_reply() -> None:
    """Token limits are charged by it before the usage is known."""
    for keys, parameters, estimate in ESTIMATES:
        item = next(source((target(parameters=parameters),), **keys).items(0, 1))
        if estimate is None:
            estimate = -(-len(asked(item)) // 4) + 10
            assert len(asked(item)) > 600
        assert item.estimate_tokens == estimate


def test_a_unique_prefix_differs_for_every_slot_and_phase() -> None:
    """Otherwise a prefix cache answers, and TTFT is its."""
    made = source(prefix="unique")
    prompts = texts(made, 3000) + texts(made, 3000, phase=1)
    assert len({prompt.split("\n\n")[0] for prompt in prompts}) == 6000
    assert all(prompt.endswith("the speed of light.") for prompt in prompts)


def test_a_shared_prefix_is_the_same_for_every_slot_phase_and_row(tmp_path: Path) -> None:
    """It is what a study of prefix caches asks for."""
    path = numbered(tmp_path / "x.jsonl", 9)
    made = source(kind="file", path=path, prefix="shared", prefix_tokens=30)
    prompts = texts(made, 20) + texts(made, 20, phase=1)
    assert len({prompt.split("\n\n")[0] for prompt in prompts}) == 1
    assert len(prompts[0].split("\n\n")[0].split()) == 30


def test_a_prefix_goes_before_the_system_prompt_as_the_model_reads_that_first(tmp_path: Path) -> None:
    """Behind it, the system prompt would still be found in the cache."""
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "hi", "system": "row's own"}, {"prompt": "hi"}])
    keys = {"kind": "file", "path": path, "prefix": "shared", "prefix_tokens": 3}
    own, targets = (item.prompt for item in islice(source((target(system="target's"),), **keys).items(0, 1), 2))
    assert own.system is not None
    assert targets.system is not None
    assert own.system.endswith("\n\nrow's own")
    assert targets.system.endswith("\n\ntarget's")
    assert own.messages == targets.messages == ({"role": "user", "content": "hi"},)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prefix": "shared"}, "workload.prefix_tokens"),
    ({"prefix_tokens": 5}, "workload.prefix"),
    ({"kind": "synthetic"}, "workload.input_tokens"),
    ({"prompt": ""}, "prompt is empty"),
    ({"output_tokens": Length(mean=1e10)}, "workload.output_tokens"),
    ({"kind": "file", "path": ""}, "cannot read"),
]


def test_a_workload_that_cannot_be_is_refused_at_once() -> None:
    """And not by each worker, when its first slot is due."""
    for keys, what in REFUSED:
        with pytest.raises(PlanError, match=what):
            source(**keys)


def test_only_a_trace_has_timestamps() -> None:
    """A replay of anything else has no times."""
    with pytest.raises(PlanError, match="needs a trace"):
        source().timestamps()


SALTED: list[dict[str, Any]] = [
    {"kind": "synthetic", "input_tokens": Length(kind="normal", mean=40, stddev=20)},
    {"kind": "synthetic", "input_tokens": fixed(60), "prefix": "shared", "prefix_tokens": 30},
    {"kind": "prompt", "prefix": "unique", "prefix_tokens": 30},
]


@pytest.mark.parametrize("keys", SALTED, ids=str)
def test_two_runs_with_one_seed_share_no_beginning_of_a_prompt(keys: dict[str, Any]) -> None:
    """The second run measured the first one's prefix cache: TTFT 3.67 ms instead of 17.09."""
    one, two = (texts(source(**keys, salt=salt), 300) for salt in ("run-a", "run-b"))
    assert [len(text.split()) for text in one] == [len(text.split()) for text in two]
    beginnings = {tuple(text.split()[:7]) for text in one} & {tuple(text.split()[:7]) for text in two}
    assert not {beginning for beginning in beginnings if len(beginning) == 7}
    assert texts(source(**keys, salt="run-a"), 300) == one
    assert texts(source(**keys, salt="run-a"), 100, 2, 3) == one[2::3]


def test_a_prefix_that_the_plan_asks_to_share_is_shared_within_the_run() -> None:
    """A study of prefix caches needs the cache to work inside the run, and to be cold at its start."""
    prompts = texts(source(**SALTED[1], salt="run-a"), 50)
    assert len({tuple(prompt.split()[:30]) for prompt in prompts}) == 1
    assert len({tuple(prompt.split()[30:37]) for prompt in prompts}) == 50


def test_a_salt_keeps_what_does_not_begin_the_prompt(tmp_path: Path) -> None:
    """Rows of a file are the user's own text: nothing is put in front of them."""
    path = numbered(tmp_path / "x.jsonl", 5)
    assert texts(source(kind="file", path=path, salt="a"), 5) == texts(source(kind="file", path=path), 5)
    long = {"kind": "synthetic", "input_tokens": fixed(60)}
    salted_words, plain_words = (texts(source(**long, **keys), 1)[0].split() for keys in ({"salt": "a"}, {}))
    assert salted_words[7:] == plain_words[7:]


def test_the_salt_of_a_run_is_its_id_and_any_other_stays() -> None:
    """The same in all workers of the run, and after one was replaced."""
    for salt, resolved in (("run", "20260101-000000-ab"), ("none", "none"), ("mine", "mine")):
        plan = Plan(name="p", targets=(target(),), workload=Workload(salt=salt), phases=())
        assert salted(plan, "20260101-000000-ab").workload.salt == resolved
