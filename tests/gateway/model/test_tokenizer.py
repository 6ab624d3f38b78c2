"""Ids and texts are those that `AutoTokenizer` gives, for every kind of tokenizer, and streams lose nothing of them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gateway.model.tokenizer import ModelTokenizer
from services.common.checkpoint import CheckpointError
from support.tokenizers import KINDS, TEXTS, save_kind

SPECIAL = ["<|end|>", "<s>", "</s>", "[SEP]", "<l>", " <r> ", "<w>", "a<w>", "<N>", "<n>", "<S>", "<P>", "<|im_start|>"]
WORDS = [
    *SPECIAL,
    "<tool>",
    "<|fim|>",
    "<|begin|>",
    "the",
    " there",
    "they've",
    " ",
    "  ",
    "\n",
    "é",
    "😀",
    "東京",
    ". ",
]
ANY_TEXT = st.text(max_size=40) | st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map("".join)


class Both(NamedTuple):
    ours: ModelTokenizer
    theirs: Any


@pytest.fixture(scope="module", params=sorted(KINDS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = save_kind(tmp_path_factory.mktemp("kind"), request.param)
    return Both(ModelTokenizer(folder), AutoTokenizer.from_pretrained(folder))


@settings(max_examples=40)
@given(text=ANY_TEXT)
async def test_ids_are_those_of_transformers(both: Both, text: str) -> None:
    assert await both.ours.encode(text) == both.theirs.encode(text)
    expected = both.theirs.encode(text, add_special_tokens=False)
    assert await both.ours.encode(text, add_special_tokens=False) == expected


async def test_no_text_is_cut_or_filled(both: Both) -> None:
    text = " ".join(TEXTS) * 50
    ids = await both.ours.encode(text)
    assert len(ids) > 1000
    assert ids == both.theirs.encode(text)


@settings(max_examples=40)
@given(prompt=ANY_TEXT, texts=st.tuples(ANY_TEXT, ANY_TEXT), data=st.data())
async def test_deltas_behind_a_prompt_are_what_the_whole_text_has_behind_it(
    both: Both, prompt: str, texts: tuple[str, str], data: st.DataObject
) -> None:
    prompt_ids = await both.ours.encode(prompt)
    first, second = [both.theirs.encode(text, add_special_tokens=False) for text in texts]
    without_text = [[], [len(both.theirs) + 7], both.theirs.all_special_ids[:1]]
    ids = [*first, *data.draw(st.sampled_from(without_text)), *second]
    for skip in (True, False):
        raw = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        before, whole = both.theirs.decode(prompt_ids, **raw), both.theirs.decode(prompt_ids + ids, **raw)
        assert whole.startswith(before)
        expected = whole[len(before) :]
        if both.theirs.clean_up_tokenization_spaces:
            expected = both.theirs.clean_up_tokenization(expected)
        detokenizer = both.ours.detokenizer(prompt_ids, skip_special_tokens=skip)
        parts, at = [], 0
        while at < len(ids):
            size = data.draw(st.integers(1, 4))
            parts.append(detokenizer.push(ids[at : at + size]))
            at += size
        assert "".join(parts) + detokenizer.flush() == expected


async def test_a_space_behind_a_prompt_is_kept(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(save_kind(tmp_path, "byte-fallback"))
    prompt, whole = await tokenizer.encode("in the"), await tokenizer.encode("in the an")
    assert tokenizer.detokenizer(prompt).push(whole[len(prompt) :]) == " an"
    assert tokenizer.detokenizer().push(whole[len(prompt) :]) == "an"


async def test_a_character_that_a_prompt_begins_comes_whole(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(save_kind(tmp_path, "byte-level"))
    ids = await tokenizer.encode("ab\U0001fae0cd")
    texts = [await tokenizer.decode(ids[: at + 1]) for at in range(len(ids))]
    first = next(at for at, text in enumerate(texts) if "\N{REPLACEMENT CHARACTER}" in text)
    assert tokenizer.detokenizer(ids[: first + 1]).push(ids[first + 1 :]) == "\U0001fae0cd"


async def test_words_are_found_with_and_without_a_space_before_them(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(save_kind(tmp_path, "byte-level"))
    words = await tokenizer.encode_words(["the", "zzz", ""])
    assert await tokenizer.encode("the") in words
    assert await tokenizer.encode(" zzz") in words or await tokenizer.encode("zzz") in words
    assert all(words)


def test_a_folder_without_a_tokenizer_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer that can be used") as refusal:
        ModelTokenizer(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"CTRLTokenizer.*has no fast form"):
        ModelTokenizer(str(tmp_path))


def test_a_tokenizer_that_is_a_program_of_its_own_is_not_run(tmp_path: Path) -> None:
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(CheckpointError, match="has no tokenizer that can be used"):
        ModelTokenizer(str(tmp_path))
