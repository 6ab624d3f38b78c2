"""Adapters through the whole system: uploaded, named, mixed, moved, deleted, and no token that PEFT would not say."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline import Client, InvalidArgumentError, NotFoundError, PacelineError, UnavailableError
from paceline.internal.v1 import (
    draft_pb2,
    draft_pb2_grpc,
    model_server_pb2,
    model_server_pb2_grpc,
    speculation_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from services.common.access import credentials
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.cached import CachedSystem
from support.lora import (
    ADAPTERS,
    ATTENTION,
    MLP,
    PEFT_WARNING,
    continue_with_peft,
    digest_of,
    save_adapter,
    save_adapters,
)
from support.system import collect, first_tokens

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
NUM_TOKENS = 20
OPTIONS = {"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
PROMPTS = [random.Random(n).choices(range(3, 250), k=6 + 9 * n) for n in range(len(ADAPTERS) + 1)]


@pytest.fixture(scope="session")
def adapters(target_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Saved with the model's name, as a recipe would."""
    return save_adapters(target_folder, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def expected(target_folder: str, adapters: list[Path]) -> list[list[int]]:
    return [
        continue_with_peft(target_folder, adapter, prompt, NUM_TOKENS)
        for adapter, prompt in zip([*adapters, None], PROMPTS, strict=True)
    ]


@pytest.fixture
async def system(target_folder: str, draft_folder: str, tmp_path: Path) -> AsyncIterator[CachedSystem]:
    """All services, with a prefix cache and an adapter store."""
    async with CachedSystem(target_folder, draft_folder, store_folder=tmp_path / "store") as running:
        yield running


async def upload(system: CachedSystem, folder: Path, name: str, tenant: str = "a", **more: Any) -> str:
    async with system.client(tenant) as client:
        return (await client.upload_adapter(folder, name, ignore_base_model=True, **more)).digest


@pytest.mark.parametrize("speculation", [True, False])
async def test_a_mixed_batch_through_the_gateway_says_what_peft_says(
    system: CachedSystem, adapters: list[Path], expected: list[list[int]], speculation: bool
) -> None:
    for number, folder in enumerate(adapters):
        assert await upload(system, folder, f"a{number}") == digest_of(folder)
    names = [*(f"a{number}" for number in range(len(adapters))), ""]
    replies = await asyncio.gather(
        *(
            system.generate(prompt, adapter=name, speculation=speculation, **OPTIONS)
            for prompt, name in zip(PROMPTS, names, strict=True)
        )
    )
    assert [reply.token_ids for reply in replies] == expected
    async with system.client("a") as client:
        listed = await client.list_adapters()
    assert [adapter.name for adapter in listed] == names[:-1]
    assert (sum(reply.usage.num_drafted_tokens for reply in replies[:-1]) > 0) is speculation


async def test_adapters_do_not_share_computed_prompts(
    system: CachedSystem, adapters: list[Path], target_folder: str
) -> None:
    """The same prompt with two adapters and without: from the verifier, and after a restart from the prefix cache."""
    prompt = random.Random(5).choices(range(3, 250), k=100)
    names = ["a3", "a5", ""]
    for name in names[:2]:
        await upload(system, adapters[int(name[1])], name)
    by_name = {"a3": adapters[3], "a5": adapters[5], "": None}
    wanted = {name: continue_with_peft(target_folder, by_name[name], prompt, NUM_TOKENS) for name in names}
    for restarted in (False, True):
        cached = []
        for turn in range(2):
            for name in names:
                reply = await system.generate(prompt, adapter=name, **OPTIONS)
                assert reply.token_ids == wanted[name]
                cached.append(reply.usage.num_cached_tokens)
            if not restarted and not turn:
                assert cached == [0, 0, 0]
        assert cached[-3:] == [96, 96, 96]
        await system.stored(3 * 7)
        if not restarted:
            await system.start_engines()
    await system.start_cache()
    await system.start_engines()
    assert (await system.generate(prompt, adapter="a5", **OPTIONS)).token_ids == wanted["a5"]


async def test_no_tenant_can_see_use_move_or_delete_anothers(
    system: CachedSystem, adapters: list[Path], expected: list[list[int]]
) -> None:
    await upload(system, adapters[5], "mine", "a")
    async with system.client("b") as other:
        said = []
        for name in ("mine", "nothing"):
            for call in (
                collect(other.generate(PROMPTS[0], adapter=name, **OPTIONS)),
                collect(other.chat([("user", "hi")], adapter=name, **OPTIONS)),
                other.get_adapter(name),
                other.delete_adapter(name),
            ):
                with pytest.raises(PacelineError) as raised:
                    await call
                details = f"{raised.value} {raised.value.details()}"
                said.append((raised.value.code, details.replace(name, "NAME")))
        assert said[:4] == said[4:]
        assert {code for code, _ in said} == {grpc.StatusCode.NOT_FOUND}
        assert await other.list_adapters() == []
    await upload(system, adapters[3], "mine", "b")
    assert (await system.generate(PROMPTS[5], "a", adapter="mine", **OPTIONS)).token_ids == expected[5]
    assert (await system.generate(PROMPTS[3], "b", adapter="mine", **OPTIONS)).token_ids == expected[3]
    async with system.client("b") as other:
        await other.delete_adapter("mine")
    assert (await system.generate(PROMPTS[5], "a", adapter="mine", **OPTIONS)).token_ids == expected[5]


async def test_what_a_stream_says_of_its_tenant_is_not_believed_without_a_token(
    system: CachedSystem, adapters: list[Path]
) -> None:
    """Not by a verifier that has the adapter loaded, nor by the draft."""
    digest = await upload(system, adapters[5], "mine", "a")
    await system.generate(PROMPTS[1], adapter="mine", **OPTIONS)
    theirs, own = system.mint.sequence_token("tenant/b"), system.mint.sequence_token("tenant/a")
    expected = {"": "UNAUTHENTICATED", "x.y.z": "UNAUTHENTICATED", theirs: "PERMISSION_DENIED", own: "OK"}
    for token, code in expected.items():
        opening = speculation_pb2.Open(
            token_ids=PROMPTS[1], num_prompt_tokens=len(PROMPTS[1]), sampling={"seed": 1, "max_tokens": 2},
            tenant={"namespace": "tenant/a"}, adapter_digest=digest, max_draft_tokens=2,
        )  # fmt: skip
        async with grpc.aio.insecure_channel(system.verifier) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            call = stub.Verify(iter([verifier_pb2.VerifyRequest(open=opening)]), metadata=credentials(token))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            assert code == "OK" or (await call.code()).name == code
            prefetch = model_server_pb2.PrefetchAdapterRequest(adapter_digest=digest, tenant=opening.tenant)
            asked = model_server_pb2_grpc.ModelServerServiceStub(channel).PrefetchAdapter(
                prefetch, metadata=credentials(token)
            )
            assert (await asked.code()).name == code
        opening.adapter_digest = ""
        async with grpc.aio.insecure_channel(system.draft_address) as channel:
            call = draft_pb2_grpc.DraftServiceStub(channel).Propose(metadata=credentials(token))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(draft_pb2.ProposeRequest(open=opening))
                await call.read()
            assert code == "OK" or (await call.code()).name == code
            call.cancel()


async def test_moving_or_deleting_a_name_does_not_change_a_running_stream(
    system: CachedSystem, adapters: list[Path], target_folder: str
) -> None:
    prompt, length = PROMPTS[1], 300
    wanted = continue_with_peft(target_folder, adapters[7], prompt, length)
    moved = continue_with_peft(target_folder, adapters[3], prompt, NUM_TOKENS)
    await upload(system, adapters[7], "mine")
    async with system.client("a") as client:
        stream = client.generate(prompt, adapter="mine", **{**OPTIONS, "max_tokens": length})
        tokens = await first_tokens(stream)
        await upload(system, adapters[3], "mine", replace=True)
        assert (await system.generate(prompt, adapter="mine", **OPTIONS)).token_ids == moved
        await client.delete_adapter("mine")
        with pytest.raises(NotFoundError):
            await system.generate(prompt, adapter="mine", **OPTIONS)
        async for event in stream:
            tokens.extend(event.delta.token_ids)
    assert tokens == wanted


async def test_an_adapter_of_the_draft_is_used_and_changes_no_token(target_folder: str, tmp_path: Path) -> None:
    """Draft and target are the same model here: with the same adapter everything is accepted."""
    folder = save_adapter(target_folder, tmp_path / "adapter", 8, ATTENTION + MLP, 3)
    options = {**OPTIONS, "max_tokens": 60}
    wanted = continue_with_peft(target_folder, folder, PROMPTS[2], 60)
    async with CachedSystem(target_folder, target_folder, store_folder=tmp_path / "store") as system:
        await upload(system, folder, "mine")
        base = await system.generate(PROMPTS[2], adapter="mine", **options)
        async with system.client("a") as client:
            adapter = await client.upload_adapter(folder, "mine", ignore_base_model=True, for_draft=True)
        assert adapter.draft_digest == adapter.digest
        good = await system.generate(PROMPTS[2], adapter="mine", **options)
        again = await system.generate(PROMPTS[2], adapter="mine", speculation=False, **options)
    assert base.token_ids == good.token_ids == again.token_ids == wanted
    rates = [r.usage.num_accepted_tokens / max(1, r.usage.num_drafted_tokens) for r in (base, good)]
    assert rates[0] < rates[1] == 1.0
    assert good.usage.num_rounds < base.usage.num_rounds


async def test_a_bad_upload_is_refused_through_the_gateway(
    system: CachedSystem, adapters: list[Path], tmp_path: Path
) -> None:
    async with system.client("a") as client:
        with pytest.raises(InvalidArgumentError) as raised:
            await client.upload_adapter(adapters[0], "mine")
        assert raised.value.violations[0].field == "adapter_config.json:base_model_name_or_path"
        (tmp_path / "bad").mkdir()
        for path in adapters[0].iterdir():
            (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"PK\3\4 a zip")
        with pytest.raises(InvalidArgumentError, match="is a zip archive"):
            await client.upload_adapter(tmp_path / "bad", "mine", ignore_base_model=True)
        assert await client.list_adapters() == []
        (tmp_path / "bad" / "adapter_model.safetensors").unlink()
        (tmp_path / "bad" / "adapter_model.bin").touch()
        with pytest.raises(FileNotFoundError, match="safe_serialization"):
            await client.upload_adapter(tmp_path / "bad", "mine")


@pytest.mark.timeout(240)
async def test_a_stream_with_an_adapter_outlives_its_verifier_and_the_store(
    target_folder: str, draft_folder: str, adapters: list[Path]
) -> None:
    prompt, length = PROMPTS[1], 300
    wanted = continue_with_peft(target_folder, adapters[7], prompt, length)
    pair = Pair(model=target_folder, draft=draft_folder, dtype="float32", threads=1, draft_threads=1)
    settings = SystemSettings((pair,), adapter_store=True, restart=True)
    async with running(settings) as launcher, Client(launcher.address()) as client:
        await client.upload_adapter(adapters[7], "mine", ignore_base_model=True)
        for victims in (["verifier"], ["adapter-store"], ["adapter-store", "verifier"]):
            tokens: list[int] = []
            async for event in client.generate(prompt, adapter="mine", **{**OPTIONS, "max_tokens": length}):
                if len(tokens) < 40 <= len(tokens) + len(event.delta.token_ids):
                    for victim in victims:
                        launcher.kill(victim)
                tokens.extend(event.delta.token_ids)
            assert tokens == wanted, victims
            async with asyncio.timeout(60):
                while True:  # Until what was killed is back.
                    try:
                        reply = await collect(client.generate(prompt, adapter="mine", **OPTIONS))
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.01)
            assert reply.token_ids == wanted[:NUM_TOKENS]
