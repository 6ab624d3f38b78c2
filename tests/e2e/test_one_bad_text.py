"""A text that cannot be computed ends alone: no process of its, and no other's tokens."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.errors import AbortedError
from support.system import start_system
from support.tiny import save_tiny, save_tokenizer

POISON = 77
OPTIONS = {"max_tokens": 24, "ignore_eos": True, "seed": 5, "logit_bias": {POISON: -100.0}}
PROMPTS = [[number, 5, 6, 7] for number in range(10, 16)]


@pytest.fixture(scope="module")
def poisoned_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose embedding of one token is not a number."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("poisoned")
    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny(folder, "qwen3"), dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = torch.nan
    model.save_pretrained(folder)
    save_tokenizer(Path(folder))
    return str(folder)


async def test_a_text_whose_numbers_are_not_finite_ends_alone(poisoned_folder: str) -> None:
    async with start_system(poisoned_folder, [poisoned_folder]) as system:
        alone = [(await system.generate(prompt, **OPTIONS)).token_ids for prompt in PROMPTS]
        requests = [asyncio.create_task(system.generate(prompt, **OPTIONS)) for prompt in PROMPTS]
        for _ in range(3):
            with pytest.raises(AbortedError, match="not finite") as caught:
                await system.generate([3, 4, POISON], max_tokens=8)
            assert caught.value.reason == "NOT_FINITE"
        assert [reply.token_ids for reply in await asyncio.gather(*requests)] == alone


async def test_a_draft_that_cannot_compute_a_text_is_done_without(
    poisoned_folder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("sound")
    save_tiny(target, "qwen3")
    save_tokenizer(target)
    prompt = [3, 4, POISON]
    async with start_system(str(target)) as system:
        expected = (await system.generate(prompt, **OPTIONS)).token_ids
    async with start_system(str(target), [poisoned_folder]) as system:
        assert (await system.generate(prompt, **OPTIONS)).token_ids == expected
        assert (await system.generate(PROMPTS[0], **OPTIONS)).usage.num_drafted_tokens
