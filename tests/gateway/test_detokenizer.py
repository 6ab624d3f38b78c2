"""Whole characters only, and nothing lost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.detokenizer import Detokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


@given(text=st.text(), cuts=st.lists(st.integers(1, 5), min_size=1))
def test_any_text_reassembles_exactly(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = tokenizer.encode(text).ids
    detokenizer = Detokenizer(tokenizer)
    deltas, at, turn = [], 0, 0
    while at < len(ids):
        size = cuts[turn % len(cuts)]
        deltas.append(detokenizer.push(ids[at : at + size]))
        at, turn = at + size, turn + 1
    deltas.append(detokenizer.flush())
    assert "".join(deltas) == text


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀é").ids
    assert len(ids) == 7
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([i]) for i in ids] == ["a", "", "", "", "😀", "", "é"]


def test_complete_characters_do_not_wait_for_an_incomplete_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab😀").ids
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids[:4]) == "ab"
    assert detokenizer.push(ids[4:]) == "😀"


def test_bytes_that_never_become_a_character_are_replaced(tokenizer: Tokenizer) -> None:
    lead = tokenizer.encode("😀").ids[0]
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([lead]) for _ in range(50)) + detokenizer.flush()
    assert text == "\N{REPLACEMENT CHARACTER}" * 50
    assert detokenizer.push(tokenizer.encode("ok").ids).endswith("ok")
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([lead]) == ""
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
