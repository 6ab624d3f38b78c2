"""A draft in the verifier's process, behind a gateway: the same tokens, and clients are told of it as of any draft."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from services.engine.config import Dtype, EngineConfig
from support.driver import DEVICE
from support.system import System, start_system
from support.tiny import save_tiny

REQUESTS: list[dict[str, Any]] = [
    {"prompt": "def f(", "temperature": 0.0},
    {"prompt": "import os", "temperature": 0.9, "seed": 3, "top_p": 0.9},
    {"prompt": "class A:", "temperature": 0.7, "seed": 4, "stop": ["\n\n"], "logprobs": 2},
    {"prompt": "x = " * 60, "temperature": 0.0, "repetition_penalty": 1.2},
]


def draft(folder: str) -> dict[str, EngineConfig]:
    return {"draft": EngineConfig(model=folder, device=DEVICE, dtype=Dtype.FLOAT32, num_blocks=256)}


async def ask(system: System, *, speculation: bool) -> list[tuple[list[int], str, int]]:
    replies = await asyncio.gather(
        *(system.generate(**request, max_tokens=48, speculation=speculation) for request in REQUESTS)
    )
    return [(reply.token_ids, reply.text, reply.usage.num_accepted_tokens) for reply in replies]


async def test_tokens_are_the_same_and_clients_are_told_of_it(target_folder: str, draft_folder: str) -> None:
    async with start_system(target_folder, verifier={**draft(draft_folder), "suffix_drafting": False}) as system:
        without, speculating = await ask(system, speculation=False), await ask(system, speculation=True)
        (model,) = await system.client.list_models()
        told = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--address", system.gateway])
    assert [reply[:2] for reply in speculating] == [reply[:2] for reply in without]
    assert sum(accepted for *_, accepted in without) == 0
    assert sum(accepted for *_, accepted in speculating) > 20
    assert (model.draft.id, model.draft_problem) == (Path(draft_folder).name, "")
    assert len(model.draft.step_times) > 3
    assert "the draft is used for having as many tokens as the target" in " ".join(told.output.split())


async def test_it_proposes_in_place_of_draft_services(
    target_folder: str, draft_folder: str, random_folder: str
) -> None:
    """The service's draft is right by chance alone."""
    async with start_system(target_folder, [random_folder], verifier=draft(draft_folder)) as system:
        reply = await system.generate("def f(", max_tokens=60, temperature=0.0, ignore_eos=True)
    assert reply.usage.num_accepted_tokens > 10
    assert reply.usage.num_ready_rounds == 0


async def test_one_that_does_not_fit_ends_the_verifier_with_a_sentence(target_folder: str, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama", seed=1, vocab_size=128)
    with pytest.raises(Exception, match="other has 128 tokens and the model 256"):
        async with asyncio.timeout(30), start_system(target_folder, verifier=draft(other)):
            pass
