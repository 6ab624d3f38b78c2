"""Whole characters only, nothing lost, whatever the tokenizer and however tokens come."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from gateway.model.detokenizer import Decoding, Detokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def byte_level(tokenizer_folder: Path) -> Tokenizer:
    """As of Llama 3, Qwen, GPT-2: a token is a string of bytes."""
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As of Llama 2, Mistral, Gemma: a token is a string of characters, or one byte of a character it lacks."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {c: 256 + i for i, c in enumerate("▁abcdefgh")}
    tokenizer = Tokenizer(BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


def _detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    return Detokenizer(Decoding(tokenizer.decode, lambda token_id: tokenizer.id_to_token(token_id) is None))


def _in_pieces(tokenizer: Tokenizer, ids: list[int], sizes: Callable[[], int]) -> str:
    detokenizer = _detokenizer(tokenizer)
    parts, at = [], 0
    while at < len(ids):
        size = sizes()
        parts.append(detokenizer.push(ids[at : at + size]))
        at += size
    return "".join(parts) + detokenizer.flush()


@given(text=st.text() | st.text("a😀🎉é \n"), data=st.data())
def test_any_text_reassembles_exactly(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = tokenizer.encode(text).ids
    assert _in_pieces(tokenizer, ids, lambda: data.draw(st.integers(1, 5))) == tokenizer.decode(ids)
    assert _in_pieces(tokenizer, ids, lambda: 1) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 255), max_size=200), data=st.data())
def test_the_text_of_noise_does_not_depend_on_how_it_comes(
    tokenizer: Tokenizer, ids: list[int], data: st.DataObject
) -> None:
    expected = _in_pieces(tokenizer, ids, lambda: 1)
    assert _in_pieces(tokenizer, ids, lambda: data.draw(st.integers(1, 80))) == expected


@given(ids=st.lists(st.integers(0, 255), max_size=60))
def test_noise_decodes_as_it_does_in_one_piece(byte_level: Tokenizer, ids: list[int]) -> None:
    assert _in_pieces(byte_level, ids, lambda: 1) == byte_level.decode(ids)


def test_a_character_of_several_tokens_comes_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a😀é").ids
    detokenizer = _detokenizer(byte_level)
    assert [detokenizer.push([i]) for i in ids] == ["a", "", "", "", "😀", "", "é"]


def test_complete_characters_do_not_wait_for_an_incomplete_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab😀😀").ids
    detokenizer = _detokenizer(tokenizer)
    assert detokenizer.push(ids[:4]) == "ab"
    assert detokenizer.push(ids[4:7]) == "😀"
    assert detokenizer.push(ids[7:]) == "😀"


def test_endless_noise_is_shown_in_bounded_time(byte_level: Tokenizer) -> None:
    (lead, *_) = byte_level.encode("😀").ids
    detokenizer = _detokenizer(byte_level)
    shown = [detokenizer.push([lead]) for _ in range(1000)]
    assert len("".join(shown)) > 900
    assert "".join(shown) + detokenizer.flush() == UNKNOWN * 1000
    assert detokenizer.push(byte_level.encode("ok").ids) == "ok"
