"""Commits become deltas: text, token ids, log-probabilities and counts, up to the end."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.generation.choice import Choice
from gateway.generation.stop_strings import StopStrings
from gateway.model.tokenizer import ModelTokenizer
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import sampling_pb2

STOP, LENGTH, EOS = (
    sampling_pb2.FINISH_REASON_STOP,
    sampling_pb2.FINISH_REASON_LENGTH,
    sampling_pb2.FINISH_REASON_EOS,
)


class Script:
    """Stands in a relay's place, and yields commits of a text in pieces."""

    def __init__(self, token_ids: list[int], piece: int, reason: "sampling_pb2.FinishReason.ValueType") -> None:
        self.pieces = [token_ids[at : at + piece] for at in range(0, len(token_ids), piece)]
        self.reason = reason
        self.is_closed = False

    async def commits(self) -> AsyncIterator[speculation_pb2.Commit]:
        try:
            for number, token_ids in enumerate(self.pieces, 1):
                last = self.reason if number == len(self.pieces) else sampling_pb2.FINISH_REASON_UNSPECIFIED
                logprobs = [sampling_pb2.TokenLogprobs(logprob=-token) for token in token_ids]
                yield speculation_pb2.Commit(
                    token_ids=token_ids, finish_reason=last, logprobs=logprobs, num_drafted=3, num_accepted=2
                )
        finally:
            self.is_closed = True


async def read(tokenizer: ModelTokenizer, script: Any, stops: list[str]) -> tuple[str, list[int], int, Choice]:
    choice = Choice(2, tokenizer.detokenizer(), StopStrings(stops))
    *deltas, finished = [event async for event in choice.events(script)]
    assert all(event.choice == 2 for event in (*deltas, finished))
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    tokens = [token for delta in deltas for token in delta.token_ids]
    return "".join(delta.text for delta in deltas), tokens, finished.finish_reason, choice


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
@pytest.mark.parametrize("reason", [LENGTH, EOS])
async def test_a_text_comes_whole_however_it_was_committed(tokenizer_folder: Path, piece: int, reason: Any) -> None:
    tokenizer = ModelTokenizer(str(tokenizer_folder))
    ids = await tokenizer.encode("one 😀 two EN")
    script = Script(ids, piece, reason)
    text, tokens, ended, choice = await read(tokenizer, script, ["END"])
    assert (text, tokens, ended) == ("one 😀 two EN", ids, reason)
    assert choice.usage.num_completion_tokens == len(ids)
    assert choice.usage.num_rounds == len(script.pieces)
    assert (choice.usage.num_drafted_tokens, choice.usage.num_accepted_tokens) == (
        3 * len(script.pieces),
        2 * len(script.pieces),
    )
    assert script.is_closed


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
async def test_a_stop_string_ends_a_text_and_its_relay(tokenizer_folder: Path, piece: int) -> None:
    tokenizer = ModelTokenizer(str(tokenizer_folder))
    script = Script(await tokenizer.encode("one END two three"), piece, LENGTH)
    text, tokens, ended, choice = await read(tokenizer, script, ["END"])
    assert (text, ended) == ("one ", STOP)
    assert tokens == await tokenizer.encode("one END")
    assert choice.usage.num_completion_tokens == len(tokens)
    assert script.is_closed


@pytest.mark.parametrize("stops", [[], ["END"]])
async def test_a_delta_says_which_of_its_tokens_and_text_were_proposed(
    tokenizer_folder: Path, stops: list[str]
) -> None:
    tokenizer = ModelTokenizer(str(tokenizer_folder))
    script = Script(await tokenizer.encode("abcdefgh"), 3, LENGTH)
    choice = Choice(2, tokenizer.detokenizer(), StopStrings(stops))
    *deltas, _ = [event async for event in choice.events(script)]  # type: ignore[arg-type]
    assert [delta.text for delta in deltas] == ["abc", "def", "gh"]
    assert [delta.num_drafted_tokens for delta in deltas] == [3, 3, 3]
    assert [delta.num_accepted_tokens for delta in deltas] == [2, 2, 2]
    assert [delta.text[: delta.num_accepted_characters] for delta in deltas] == ["ab", "de", "gh"]


async def test_a_character_whose_last_byte_the_target_decided_is_the_targets(tokenizer_folder: Path) -> None:
    tokenizer = ModelTokenizer(str(tokenizer_folder))
    script = Script(await tokenizer.encode("aé"), 3, LENGTH)
    choice = Choice(2, tokenizer.detokenizer(), StopStrings([]))
    delta, _ = [event async for event in choice.events(script)]  # type: ignore[arg-type]
    assert (delta.text, delta.num_accepted_tokens, delta.num_accepted_characters) == ("aé", 2, 1)


async def test_text_that_a_stop_string_held_back_counts_when_it_comes(tokenizer_folder: Path) -> None:
    tokenizer = ModelTokenizer(str(tokenizer_folder))
    script = Script(await tokenizer.encode("xEy and"), 3, LENGTH)
    choice = Choice(2, tokenizer.detokenizer(), StopStrings(["END", "d!"]))
    *deltas, _ = [event async for event in choice.events(script)]  # type: ignore[arg-type]
    assert "".join(delta.text for delta in deltas) == "xEy and"
    assert [delta.text[: delta.num_accepted_characters] for delta in deltas] == ["x", " a", ""]
