"""Drafts may round differently: their fast forward must still say nearly what the exact one says."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.engine import forwards
from services.engine.config import Dtype, Weights
from services.engine.engine import Engine
from support.driver import generate, make_engine
from support.tiny import save_tiny

NUM_TOKENS = 60


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_draft_says_nearly_what_the_same_model_says_exactly(
    tmp_path_factory: pytest.TempPathFactory, architecture: str
) -> None:
    model = save_tiny(tmp_path_factory.mktemp("model"), architecture, initializer_range=0.1)
    rng = random.Random(2)
    prompts = [[rng.randrange(3, 256) for _ in range(length)] for length in (5, 70, 33, 16)]
    exact, guessing = make_engine(model), make_engine(model, is_draft=True, dtype=Dtype.BFLOAT16)
    assert is_rounded(guessing)
    assert not is_rounded(exact)
    expected = generate(exact, prompts, NUM_TOKENS)
    # Along the exact text, so that one different pick does not lead to a different text.
    agreed = 0
    for prompt, tokens in zip(prompts, expected, strict=True):
        for at in range(0, NUM_TOKENS, 6):
            text = [*prompt, *tokens[:at]]
            agreed += generate(guessing, [text], 3)[0] == tokens[at : at + 3]
    assert agreed >= 0.75 * len(prompts) * NUM_TOKENS / 6


def is_rounded(engine: Engine) -> bool:
    """Whether weights are 8-bit integers."""
    return "int8" in engine.runner.forward.identity


def test_rows_of_several_sequences_do_not_touch_each_other(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = save_tiny(tmp_path_factory.mktemp("model"))
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 256) for _ in range(rng.randrange(1, 50))] for _ in range(8)]
    guessing = make_engine(model, is_draft=True, dtype=Dtype.BFLOAT16, max_step_tokens=16)
    alone = [generate(guessing, [prompt], NUM_TOKENS)[0] for prompt in prompts]
    assert generate(guessing, prompts, NUM_TOKENS) == alone


@pytest.mark.parametrize("architecture", ["gpt2"])
def test_other_models_draft_through_their_usual_forward(
    tmp_path_factory: pytest.TempPathFactory, architecture: str
) -> None:
    model = save_tiny(tmp_path_factory.mktemp("model"), architecture)
    assert not is_rounded(make_engine(model, is_draft=True, dtype=Dtype.BFLOAT16))


def test_a_draft_in_float32_is_not_rounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert not is_rounded(make_engine(save_tiny(tmp_path_factory.mktemp("model")), is_draft=True))


def test_a_target_is_rounded_where_that_is_asked_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = save_tiny(tmp_path_factory.mktemp("model"))
    rounded = make_engine(model, dtype=Dtype.BFLOAT16, weights=Weights.INT8)
    assert is_rounded(rounded)
    assert not is_rounded(make_engine(model, dtype=Dtype.BFLOAT16))
    assert not is_rounded(make_engine(model, dtype=Dtype.BFLOAT16, is_draft=True, weights=Weights.DTYPE))


def test_what_cannot_be_rounded_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = save_tiny(tmp_path_factory.mktemp("model"), "gpt2")
    with pytest.raises(ValueError, match="GPT2LMHeadModel on cpu: weights cannot be int8"):
        make_engine(model, weights=Weights.INT8)


def test_a_target_whose_answers_rounding_would_change_is_refused_with_how_much(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():  # One number of each row is so large that 8 bits have nothing left for the others.
        for layer in model.model.layers:
            layer.input_layernorm.weight[0] *= 3000
            layer.post_attention_layernorm.weight[0] *= 3000
            for linear in (*list(layer.self_attn.children())[:3], layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[:, 0] /= 3000
    model.save_pretrained(folder)
    said = r"LlamaForCausalLM does not bear weights of 8 bits: logits of a text differ by \d\.\d\d of their spread"
    with pytest.raises(ValueError, match=said):
        make_engine(folder, dtype=Dtype.BFLOAT16, weights=Weights.INT8)
    assert not is_rounded(make_engine(folder, dtype=Dtype.BFLOAT16))


def test_a_draft_that_does_not_bear_rounding_keeps_its_type(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwards, "_TOLERANCE_OF_DRAFTS", 0.0)
    model = save_tiny(tmp_path_factory.mktemp("model"))
    draft = make_engine(model, is_draft=True, dtype=Dtype.BFLOAT16)
    assert "fused bfloat16" in draft.runner.forward.identity
