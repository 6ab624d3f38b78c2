"""Whether speculation pays is measured by a running verifier, and can be asked for: over gRPC and by command."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from paceline import NotFoundError
from paceline.cli.app import app
from support.system import System, start_system

MEASURED = {"speculation": "measured", "suffix_drafting": False}
NUM_TOKENS = 160


async def shown(system: System, *options: str) -> str:
    """What `paceline stats` prints; it is a program of its own, beside the system's event loop."""
    arguments = ["stats", "--address", system.gateway, *options]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


async def test_a_draft_is_tried_between_rounds_without_and_no_token_differs(
    target_folder: str, random_folder: str
) -> None:
    async with start_system(target_folder, [random_folder], verifier=MEASURED) as system:
        before = await system.client.get_speculation()
        assert [list(state.loads) for state in before.verifiers] == [[]]
        assert "nothing was measured yet" in await shown(system)
        drafted = 0
        for seed in range(3):
            options = {"seed": seed, "max_tokens": NUM_TOKENS, "ignore_eos": True}
            on = await system.generate("def f(", **options)
            off = await system.generate("def f(", speculation=False, **options)
            assert on.token_ids == off.token_ids
            assert off.usage.num_drafted_tokens == 0
            drafted += on.usage.num_drafted_tokens
        found = await system.client.get_speculation("tiny")
        printed, plain = await shown(system), json.loads(await shown(system, "--json"))
    (state,) = found.verifiers
    assert drafted > 0, "the draft was never tried"
    assert state.loads[0].num_rows == 1
    assert state.loads[0].draft_revision_digest
    assert state.loads[0].ratios[0].low < state.loads[0].ratios[0].ratio < state.loads[0].ratios[0].high
    assert state.measured_seconds > state.lost_seconds >= 0
    assert " at 1 rows: draft " in state.decisions[0].reason
    assert state.decisions[0].reason in printed
    assert plain[0]["model"] == "tiny"
    assert plain[0]["verifiers"][0]["loads"][0]["num_rows"] == 1


async def test_without_speculation_no_draft_is_asked_for_anything(target_folder: str, draft_folder: str) -> None:
    async with start_system(target_folder, [draft_folder], verifier={"speculation": "never"}) as system:
        reply = await system.generate("x = ", max_tokens=40, ignore_eos=True)
        readings = system.client.get_speculation()
        assert [list(state.loads) for state in (await readings).verifiers] == [[]]
    assert reply.usage.num_drafted_tokens == 0


async def test_a_model_that_is_not_there_has_no_speculation(system: System) -> None:
    with pytest.raises(NotFoundError):
        await system.client.get_speculation("another")
