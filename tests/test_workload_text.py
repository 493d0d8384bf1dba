"""Made-up text has the length that was asked for, and no two texts begin alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.workload.text import HEAD, TAPE_WORDS, Prose
from llm_latency_lens.engine.workload.tokenizer import Calibration, tokenizer_of
from llm_latency_lens.engine.workload.words import WORDS
from tests.support_workload import asked, fixed, source, texts

VOCABULARIES = ("cl100k_base", "o200k_base", "qwen3.5")


def byte_pairs(path: Path, corpus: str, size: int) -> str:
    """A tokenizer.json with a byte-level BPE vocabulary of `size` trained on `corpus`, that truncates and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([corpus], trainer)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def tokenizers_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[str], int]]:
    """Vocabularies that know all the words, some, and none but letters."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizers")
    corpus = " ".join(WORDS * 3)
    counts = {"letters": tokenizer_of(byte_pairs(folder / "letters.json", "x", 257))}
    counts["some"] = tokenizer_of(byte_pairs(folder / "some.json", corpus, 700))
    return counts


def test_every_word_is_one_token_of_the_common_vocabularies() -> None:
    """So that a word for a token is a fair first guess without a tokenizer."""
    toktok = pytest.importorskip("toktok")
    assert len(set(WORDS)) == len(WORDS)
    for name in VOCABULARIES:
        assert set(toktok.batch_count([*WORDS, *(f" {word}" for word in WORDS)], name, threads=1)) == {1}
        assert toktok.batch_count([" ".join(WORDS)], name, threads=1) == [len(WORDS)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_synthetic_prompts_are_exact_by_a_built_in_vocabulary(name: str) -> None:
    pytest.importorskip("toktok")
    made = source(kind="synthetic", input_tokens=fixed(1), tokenizer=name)
    count = made.prose.count
    assert count is not None
    for tokens in (1, 2, 6, 7, 8, 9, 550, TAPE_WORDS + 100, 2 * TAPE_WORDS + 1):
        assert count(made.prose.text(tokens * 77, tokens)) == tokens


@pytest.mark.parametrize("name", ["letters", "some"])
def test_text_is_exact_also_by_a_tokenizer_that_splits_the_words(
    name: str, tokenizers_by_name: dict[str, Callable[[str], int]]
) -> None:
    count = tokenizers_by_name[name]
    prose = Prose(count)
    for tokens in (10, 33, 100, 551):
        for key in range(5):
            assert count(prose.text(key, tokens)) == tokens


def test_a_tokenizer_file_that_truncates_or_pads_counts_all_of_a_text_and_no_more(
    tokenizers_by_name: dict[str, Callable[[str], int]],
) -> None:
    assert tokenizers_by_name["letters"]("x" * 100) == 100
    assert tokenizers_by_name["letters"]("x") == 1


def test_texts_of_different_keys_differ_within_their_first_words() -> None:
    prose = Prose()
    heads = {prose.words(key, HEAD) for key in range(20_000)}
    assert len(heads) == 20_000


def test_a_shorter_text_of_a_key_is_the_start_of_a_longer_one() -> None:
    prose = Prose()
    longest = prose.words(5, 3 * TAPE_WORDS)
    assert len(longest.split(" ")) == 3 * TAPE_WORDS
    for count in (1, HEAD, HEAD + 1, 100, TAPE_WORDS, 2 * TAPE_WORDS + 7):
        text = prose.words(5, count)
        assert longest.startswith(text)
        assert len(text.split(" ")) == count


def test_calibrated_prompts_have_as_many_words_as_make_the_provider_count_the_tokens() -> None:
    calibration = Calibration()
    assert calibration.factor == 1.0
    calibration.observe(100, 125)
    calibration.observe(300, 375)
    calibration.observe(0, 99)  # nothing was estimated: says nothing
    assert calibration.factor == 1.25
    made = source(kind="synthetic", input_tokens=fixed(1000), calibration=calibration.factor)
    assert [len(text.split()) for text in texts(made, 3)] == [800] * 3
    assert next(made.items(0, 1)).estimate_tokens == 1000 + 256


def test_generated_prompts_of_a_phase_share_no_first_block_without_any_prefix() -> None:
    made = source(kind="synthetic", input_tokens=fixed(200), prefix="unique")
    prompts = texts(made, 2000) + texts(made, 2000, phase=1)
    assert len({tuple(prompt.split()[:HEAD]) for prompt in prompts}) == 4000
    assert {len(prompt.split()) for prompt in prompts} == {200}


def test_a_prefix_comes_on_top_of_the_input_tokens() -> None:
    made = source(kind="synthetic", input_tokens=fixed(200), prefix="unique", prefix_tokens=50)
    item = next(made.items(0, 1))
    assert len(asked(item).split()) == 250
    assert item.estimate_tokens == 250 + 256


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no_such_base", "neither a tokenizer.json nor a vocabulary"),
        ("/none/tokenizer.json", "no such file: /none/tokenizer.json"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_named(name: str, what: str) -> None:
    pytest.importorskip("toktok")
    pytest.importorskip("tokenizers")
    with pytest.raises(PlanError, match=rf"{what}.*\(workload.tokenizer\)"):
        tokenizer_of(name)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PlanError, match=r"is no tokenizer\.json"):
        tokenizer_of(str(tmp_path / "tokenizer.json"))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, name in (("toktok", "o200k_base"), ("tokenizers", "x/tokenizer.json")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(PlanError, match=r"needs the extra 'tokenizer', .* pip install .*\[tokenizer\]"):
            tokenizer_of(name)


def test_the_workload_loads_no_library_that_the_plan_does_not_name() -> None:
    code = "import sys, llm_latency_lens.engine.workload; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "tokenizers", "toktok", "aiohttp", "asyncio"} & set(loaded)
