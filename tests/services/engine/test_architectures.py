"""Greedy tokens equal `transformers.generate` for real architectures, however the work is cut into steps."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.cpu.forward import CpuForward
from services.verifier.target_sequence import Origin
from support.driver import generate, make_engine
from support.speculating import generate_speculating
from support.tiny import ARCHITECTURES, save_tiny

NUM_TOKENS = 24


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 256) for _ in range(length)] for length in (3, 40, 9, 70, 17)]


@pytest.fixture(scope="module")
def expected(architecture: str, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(architecture, dtype=torch.float32)
    ids = [torch.tensor([prompt]) for prompt in prompts]
    out = [
        model.generate(
            i,
            attention_mask=torch.ones_like(i),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, i.shape[1] :].tolist()
        for i in ids
    ]
    assert len({token for tokens in out for token in tokens}) > 4
    return out


def test_the_commonest_shape_of_model_runs_fused(architecture: str) -> None:
    kind = AutoConfig.from_pretrained(architecture).model_type
    assert isinstance(make_engine(architecture).runner.forward, CpuForward) == (kind in ("llama", "mistral", "qwen3"))


def test_one_by_one(architecture: str, prompts: list[list[int]], expected: list[list[int]]) -> None:
    engine = make_engine(architecture)
    assert [generate(engine, [prompt], NUM_TOKENS)[0] for prompt in prompts] == expected


def test_in_one_batch_with_chunked_prefill(
    architecture: str, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert generate(make_engine(architecture, max_step_tokens=16), prompts, NUM_TOKENS) == expected


def test_with_forced_preemption(architecture: str, prompts: list[list[int]], expected: list[list[int]]) -> None:
    engine = make_engine(architecture, num_blocks=12, max_step_tokens=32)
    assert generate(engine, prompts, NUM_TOKENS) == expected
    assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("draft", ["perfect", "bad", "random"])
def test_with_speculation(architecture: str, prompts: list[list[int]], expected: list[list[int]], draft: str) -> None:
    engine = make_engine(architecture, max_step_tokens=64)
    produced, accepted = generate_speculating(engine, prompts, expected, draft)
    assert produced == expected
    assert (accepted[Origin.DRAFT] > NUM_TOKENS) == (draft != "random")


def test_long_texts(tmp_path: Path) -> None:
    """Longer than what is prepared when a model is loaded; prefilled in many steps."""
    model = save_tiny(tmp_path, "llama", max_position_embeddings=4096)
    rng = random.Random(2)
    prompt = [rng.randrange(3, 256) for _ in range(2500)]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    out = reference.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    engine = make_engine(model, max_step_tokens=256)
    assert isinstance(engine.runner.forward, CpuForward)
    assert generate(engine, [prompt], 8)[0] == out[0, len(prompt) :].tolist()
