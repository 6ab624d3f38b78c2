"""A draft may have an output layer over some tokens alone: it picks the best of them, as if others were impossible."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.checkpoint import CheckpointError
from services.common.sampling_params import SamplingParams
from services.engine.reduced_head import FILE, HeadTokens
from services.engine.sampler import Row, sample
from support.driver import generate, make_engine
from support.tiny import save_tiny

HEAD = HeadTokens(torch.tensor([1, 4, 5, 11, 12, 18, 25, 31]), 32)
TOKENS = [3, 9, 17, 40, 77, 78, 79, 130, 200, 255]
PROMPTS = [list(range(3, 20)), [7, 8, 9]]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 3, "min_p": 0.1},
        {"temperature": 0.9, "repetition_penalty": 1.4},
        {"temperature": 0.0, "logit_bias": {5: 9.0, 6: 100.0}},
        {"temperature": 0.0, "bad_words": ((4,), (18,))},
        {"temperature": 1.0, "logprobs": 2},
    ],
)
def test_picks_are_those_of_all_tokens_with_the_others_impossible(params: dict[str, object]) -> None:
    logits = 2 * torch.randn(6, len(HEAD.ids), generator=torch.Generator().manual_seed(0))
    rows = [Row(SamplingParams(seed=seed, **params), 8 + seed, list(range(8)), 3, 4) for seed in range(6)]
    few, all_of_them = sample(logits, rows, HEAD), sample(HEAD.widened(logits), rows)
    assert (few.token_ids, few.logprobs) == (all_of_them.token_ids, all_of_them.logprobs)
    assert set(few.token_ids) <= set(HEAD.ids.tolist())
    for got, expected in zip(few.runners_up, all_of_them.runners_up, strict=True):
        # Which of the impossible are named does not matter.
        assert [each for each in got if each.gap < math.inf] == [each for each in expected if each.gap < math.inf]


def test_rows_of_several_temperatures_are_picked_beside_each_other() -> None:
    logits = torch.randn(2, len(HEAD.ids), generator=torch.Generator().manual_seed(1))
    rows = [Row(SamplingParams(temperature=heat, seed=3), 5, [1] * 5, 2) for heat in (0.0, 1.0)]
    alone = [sample(logits[at : at + 1], rows[at : at + 1], HEAD).token_ids[0] for at in range(2)]
    assert sample(logits, rows, HEAD).token_ids == alone


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_a_draft_says_the_best_of_its_tokens(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(tmp_path, architecture)
    (tmp_path / FILE).write_text(json.dumps(TOKENS))
    said = generate(make_engine(folder, is_draft=True), PROMPTS, 12)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, said, strict=True):
        text = list(prompt)
        for token_id in answer:
            logits = model(input_ids=torch.tensor([text])).logits[0, -1]
            assert token_id == TOKENS[int(logits[TOKENS].argmax())]
            text.append(token_id)


def test_a_target_has_all_of_its_tokens(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    expected = generate(make_engine(folder), PROMPTS, 12)
    (tmp_path / FILE).write_text(json.dumps(TOKENS))
    assert generate(make_engine(folder), PROMPTS, 12) == expected
    assert not {token_id for answer in expected for token_id in answer} <= set(TOKENS)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[3, 256]", "lists tokens that the model does not have"),
        ("[-1]", "lists tokens that the model does not have"),
        ("[]", "lists tokens that the model does not have"),
        ('["a"]', "is no list of token ids"),
        ("{", "is no list of token ids"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, written: str, problem: str) -> None:
    folder = save_tiny(tmp_path)
    (tmp_path / FILE).write_text(written)
    with pytest.raises(CheckpointError, match=problem):
        make_engine(folder, is_draft=True)
