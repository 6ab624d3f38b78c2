"""The parity audit with real engines: ordinary traffic is the same without speculation; a wrong verifier is found."""

import asyncio
from collections import abc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.tenants.identity import Caller
from paceline import Client
from paceline.cli.app import app
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import model_pb2
from services.common.channel import open_channel
from services.verifier.accept import Accepted, Finish
from services.verifier.client import VerifierClient
from support.cached import CachedSystem
from support.lora import ATTENTION, PEFT_WARNING, save_adapter
from support.system import System, start_system

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
EVERY = {"audit_share": 1.0}


async def audited(client: Client, num_sequences: int) -> model_pb2.ParityAudit:
    """What was found once so many sequences are compared."""
    while True:
        found = (await client.get_speculation()).audit
        if found.num_sequences >= num_sequences and not found.num_waiting:
            return found
        await asyncio.sleep(0.01)


async def ask_for_all_kinds(system: System) -> int:
    """Requests of many kinds at once; returns how many sequences they had."""
    await asyncio.gather(
        system.generate("def f(", max_tokens=60, temperature=0),
        system.generate("def f(", max_tokens=60, temperature=1.3, seed=5),
        system.generate("class A:", max_tokens=40, n=3, temperature=0.9, top_p=0.9, logprobs=3),
        system.generate("import os", max_tokens=50, repetition_penalty=1.2, stop=["e", "\n"], min_tokens=3),
        system.generate([9, 8, 7] * 40, max_tokens=50, temperature=0.5, ignore_eos=True, bad_words=["a"]),
    )
    return 7


async def test_ordinary_traffic_is_the_same_and_costs_nobody_anything(target_folder: str, draft_folder: str) -> None:
    async with start_system(target_folder, [draft_folder], gateway=EVERY) as system:
        found = await audited(system.client, await ask_for_all_kinds(system))
        usage = await system.client.usage()
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["stats", "--address", system.gateway])
    assert found.share == 1
    assert found.num_mismatches == 0
    assert found.num_tokens == usage.total.num_completion_tokens > 100
    assert usage.total.num_requests == 5
    said = " ".join(shown.output.split())
    assert f"parity audit: of {found.num_tokens} tokens computed once more without speculation 0 differed" in said


async def test_a_verifier_that_believes_its_draft_is_found(
    target_folder: str, random_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def credulous(
        proposed: abc.Sequence[int], picks: abc.Sequence[int], ends: abc.Mapping[int, Finish], room: int
    ) -> Accepted:
        token_ids = [*proposed, picks[-1]][:room]
        return Accepted(
            token_ids, min(len(proposed), len(token_ids)), Finish.LENGTH if len(token_ids) == room else None
        )

    monkeypatch.setattr("services.verifier.target_role.accept", credulous)
    async with start_system(target_folder, [random_folder], gateway=EVERY) as system:
        reply = await system.generate("def f(", max_tokens=40, temperature=0, ignore_eos=True)
        assert reply.usage.num_drafted_tokens
        found = await audited(system.client, 1)
    assert found.num_mismatches > 0


@pytest.mark.parametrize("bypasses", [False, True])
async def test_who_bypasses_the_caches_is_given_nothing_that_is_kept_and_leaves_nothing(
    target_folder: str, bypasses: bool
) -> None:
    prompt, namespace = [5, 6, 7, 8] * 20, Caller("a").namespace
    opening = speculation_pb2.Open(
        token_ids=prompt, num_prompt_tokens=len(prompt), sampling={"seed": 1, "max_tokens": 40, "temperature": 1},
        tenant={"namespace": namespace}, bypasses_caches=bypasses,
    )  # fmt: skip
    async with CachedSystem(target_folder) as system:
        token = system.mint.sequence_token(namespace)

        async def compute() -> list[speculation_pb2.Commit]:
            commits: list[speculation_pb2.Commit] = []
            async with open_channel(system.verifier) as channel:
                async with VerifierClient(system.verifier, channel).verify(30, token) as stream:
                    await stream.open(opening)
                    while not commits or not commits[-1].finish_reason:
                        commit = await stream.next_commit()
                        assert commit is not None
                        commits.append(commit)
            return commits

        await system.generate(prompt, max_tokens=1)
        await system.stored(5)
        await system.start_engines()
        commits = [await compute() for _ in range(2)]
        # The engine gave the second what it had of the first, and the cache the first what it had of the request.
        assert [each[0].num_cached_tokens > 0 for each in commits] == [not bypasses] * 2
        assert [t for c in commits[0] for t in c.token_ids] == [t for c in commits[1] for t in c.token_ids]
        if bypasses:
            assert await system.num_stored() == 5
        else:
            await system.stored(7)


async def test_requests_with_an_adapter_are_compared_with_it(
    target_folder: str, draft_folder: str, tmp_path: Path
) -> None:
    adapter = save_adapter(target_folder, tmp_path / "adapter", 4, ATTENTION, 3)
    system = CachedSystem(target_folder, draft_folder, store_folder=tmp_path / "store")
    system.gateway_settings = EVERY
    async with system, system.client("a") as client:
        await client.upload_adapter(adapter, "mine", ignore_base_model=True)
        with_it = await system.generate("def f(", adapter="mine", max_tokens=40, temperature=0, ignore_eos=True)
        without = await system.generate("def f(", max_tokens=40, temperature=0, ignore_eos=True)
        assert with_it.token_ids != without.token_ids
        found = await audited(client, 2)
    assert (found.num_tokens, found.num_mismatches) == (80, 0)
