"""Drafts that are made otherwise than their target help as far as they can; what authors set about a model holds."""

import json
import shutil
from pathlib import Path

import pytest

from support.system import start_system
from support.tiny import save_tiny, save_tokenizer


async def test_past_its_own_context_a_draft_proposes_nothing(target_folder: str, tmp_path: Path) -> None:
    """Its positions are learnt: there is nothing to look up past the last."""
    short = save_tiny(tmp_path / "short", "gpt2", n_positions=64, max_position_embeddings=64)
    prompts = ["x" * 40, "y" * 63, "z" * 64, "ab" * 60]
    async with start_system(target_folder, [short]) as system:
        for prompt in prompts:
            alone = await system.generate(prompt, temperature=0, max_tokens=50, ignore_eos=True, speculation=False)
            helped = await system.generate(prompt, temperature=0, max_tokens=50, ignore_eos=True)
            assert helped.token_ids == alone.token_ids
        assert (await system.client.list_models())[0].draft.max_context_tokens == 64


async def test_a_rotary_draft_goes_on_past_its_own_context(target_folder: str, tmp_path: Path) -> None:
    short = save_tiny(tmp_path / "short", "llama", max_position_embeddings=64)
    options = {"temperature": 0, "max_tokens": 50, "ignore_eos": True}
    async with start_system(target_folder, [short]) as system:
        helped = await system.generate("ab" * 60, **options)
        assert helped.usage.num_drafted_tokens > 0
        assert helped.token_ids == (await system.generate("ab" * 60, **options, speculation=False)).token_ids


@pytest.mark.parametrize("vocab_size", [288, 320])
async def test_a_draft_of_another_padding_is_used(target_folder: str, tmp_path: Path, vocab_size: int) -> None:
    padded = save_tiny(tmp_path, "llama", vocab_size=vocab_size)
    save_tokenizer(tmp_path)
    options = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    async with start_system(target_folder, [padded]) as system:
        helped = await system.generate("x", **options)
        assert helped.usage.num_drafted_tokens > 0
        assert helped.token_ids == (await system.generate("x", **options, speculation=False)).token_ids
        assert (await system.client.list_models())[0].draft.vocab_size == vocab_size


async def test_requests_that_are_silent_sample_as_the_authors_do(target_folder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(target_folder, tmp_path / "it")
    written = {"do_sample": True, "temperature": 0.5, "top_k": 3, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(written))
    async with start_system(str(folder)) as system:
        silent = await system.generate("x", seed=1, max_tokens=20)
        said = await system.generate("x", seed=1, max_tokens=20, temperature=0.5, top_k=3)
        assert silent.token_ids == said.token_ids
        assert (silent.started.sampling.temperature, silent.started.sampling.top_k) == (0.5, 3)
        plain = await system.generate("x", seed=1, max_tokens=20, temperature=1, top_k=0)
    async with start_system(str(folder), gateway={"generation_config": False}) as system:
        silent = await system.generate("x", seed=1, max_tokens=20)
        assert silent.token_ids == plain.token_ids
        assert not silent.started.sampling.HasField("temperature")
