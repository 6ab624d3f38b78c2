"""The pairs of the family: what their shapes promise holds of the models that are made."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.family.build import build_pair
from benchmarks.family.shape import ACCEPTANCES, FIXED, RATIOS, Shape, draw, find_shape

TINY = Shape("tiny", 64, 4, 2, 1, 64, 4, 192, 0.63, seed=3)


def reads(folder: str, *, tied: bool) -> int:
    """Elements of all matrices that a step reads whole."""
    weights = load_file(Path(folder) / "model.safetensors")
    skipped = () if tied else ("model.embed_tokens.weight",)
    return sum(tensor.numel() for name, tensor in weights.items() if tensor.dim() == 2 and name not in skipped)


@pytest.mark.parametrize("shape", [*FIXED, *draw(7, 4)], ids=lambda shape: shape.name)
def test_the_pairs_have_the_ratios_that_they_are_named_for(shape: Shape) -> None:
    assert min(abs(shape.ratio / ratio - 1) for ratio in RATIOS) < 0.05
    assert shape.acceptance in ACCEPTANCES
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.width % shape.num_heads == 0
    assert shape.target_neurons >= shape.draft_neurons
    assert find_shape(shape.name) == shape


def test_the_fixed_pairs_cover_what_the_family_is_for() -> None:
    names = {shape.name for shape in FIXED}
    assert len(names) == len(FIXED) == 12
    assert {round(shape.acceptance, 2) for shape in FIXED} == set(ACCEPTANCES)
    assert {shape.vocab_size for shape in FIXED} == {8192, 65_536}
    assert {shape.tied for shape in FIXED} == {True, False}
    assert {min(RATIOS, key=lambda ratio: abs(shape.ratio / ratio - 1)) for shape in FIXED} == set(RATIOS)
    assert len({shape.num_heads // shape.num_kv_heads for shape in FIXED}) > 2


def test_a_seed_draws_the_same_pairs_again_and_another_seed_others() -> None:
    assert draw(5, 4) == draw(5, 4)
    assert draw(5, 4)[:2] == draw(5, 2)
    assert draw(5, 4) != draw(6, 4)


@pytest.mark.parametrize("name", ["7-78", "drawn-1", "drawn-x-1", ""])
def test_a_pair_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"no pair {name!r}"):
        find_shape(name)


@pytest.mark.parametrize("shape", [TINY, replace(TINY, tied=False, vocab_size=9000)], ids=["tied", "untied"])
def test_a_pair_on_disk_has_the_shape_and_agrees_as_often_as_it_should(shape: Shape, tmp_path: Path) -> None:
    built = build_pair(shape, tmp_path)
    assert reads(built.target, tied=shape.tied) == shape.target_weights
    assert reads(built.draft, tied=shape.tied) == shape.draft_weights
    assert built.agreement == pytest.approx(shape.acceptance, abs=0.03)
    assert accepted_of_own_text(built.target, built.draft) == pytest.approx(shape.acceptance, abs=0.08)
    tokenizer = AutoTokenizer.from_pretrained(built.target)
    assert tokenizer.decode(tokenizer("def f():")["input_ids"]) == "def f():"
    assert len(tokenizer) == shape.vocab_size
    assert tokenizer.decode([shape.vocab_size - 1])


def test_the_same_shape_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = (build_pair(TINY, tmp_path / name) for name in ("a", "b"))
    for one, other in ((first.target, second.target), (first.draft, second.draft)):
        weights, others = (load_file(Path(folder) / "model.safetensors") for folder in (one, other))
        assert all(torch.equal(weights[name], others[name]) for name in weights | others)
    assert build_pair(TINY, tmp_path / "a") == first


@torch.inference_mode()
def accepted_of_own_text(target_folder: str, draft_folder: str) -> float:
    """Acceptance per position: share of the target's own greedy tokens that the draft picks, reading the same text."""
    target, draft = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.bfloat16) for f in (target_folder, draft_folder)
    )
    prompts = torch.randint(1, 8192, (16, 48), generator=torch.Generator().manual_seed(9))
    texts = target.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    picks = draft(input_ids=texts).logits[:, 47:-1].argmax(-1)
    return (picks == texts[:, 48:]).double().mean().item()
