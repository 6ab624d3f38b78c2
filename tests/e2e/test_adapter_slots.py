"""Adapters on their way into a verifier: few slots, many adapters, and stores that hang, lie, refuse and die."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline import Client, DeadlineExceededError, NotFoundError, ResourceExhaustedError, UnavailableError
from paceline.internal.v1 import (
    model_server_pb2,
    model_server_pb2_grpc,
    speculation_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from services.common.tokens import new_signing_key
from support.fake_store import FakeAdapterStore, serve_store
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.lora import ADAPTERS, PEFT_WARNING, continue_with_peft, digest_of, save_adapters
from support.system import StartGateway, System, first_tokens, start_system

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
PROMPT = [40, 41, 42, 43, 44, 45, 46]
OPTIONS = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
Start = Callable[..., AbstractAsyncContextManager[System]]


@pytest.fixture(scope="session")
def adapters(target_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_adapters(target_folder, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def expected(target_folder: str, adapters: list[Path]) -> dict[str, list[int]]:
    """What PROMPT becomes with each adapter, by name; "" for none."""
    said = {f"a{n}": continue_with_peft(target_folder, folder, PROMPT, 16) for n, folder in enumerate(adapters)}
    return {**said, "": continue_with_peft(target_folder, None, PROMPT, 16)}


@pytest.fixture
def store(adapters: list[Path]) -> FakeAdapterStore:
    return FakeAdapterStore({f"a{number}": folder for number, folder in enumerate(adapters)})


@pytest.fixture
def start(target_folder: str) -> Start:
    """Starts a system whose verifier and gateway know the store at an address."""

    @asynccontextmanager
    async def started(address: str, drafts: tuple[str, ...] = (), **engine: Any) -> AsyncIterator[System]:
        engine = {"adapter_store": address, "adapter_seconds": 3.0, **engine}
        gateway = {"adapter_store": address, "signing_key": new_signing_key(), "tenant_header": "x-tenant"}
        async with start_system(target_folder, drafts, engine=engine, gateway=gateway) as system:
            async with Client(system.gateway, metadata=(("x-tenant", "a"),)) as client:
                system.client = client
                yield system

    return started


async def test_eight_adapters_share_two_slots(
    store: FakeAdapterStore, start: Start, expected: dict[str, list[int]], draft_folder: str
) -> None:
    async with serve_store(store) as address, start(address, (draft_folder,), max_adapters=2) as system:
        names = list(expected) * 2
        replies = await asyncio.gather(*(system.generate(PROMPT, adapter=name, **OPTIONS) for name in names))
        assert {name: r.token_ids for name, r in zip(names, replies, strict=True)} == expected
        again = [await system.generate(PROMPT, adapter=name, **OPTIONS) for name in ("a3", "a3", "", "a3")]
    assert [r.token_ids for r in again] == [expected[name] for name in ("a3", "a3", "", "a3")]
    assert len(store.fetched) >= len(ADAPTERS)


async def test_an_adapter_is_loaded_once_for_many_streams_and_kept(
    store: FakeAdapterStore, start: Start, expected: dict[str, list[int]]
) -> None:
    async with serve_store(store) as address, start(address) as system:
        replies = await asyncio.gather(*(system.generate(PROMPT, adapter="a5", **OPTIONS) for _ in range(8)))
        assert [r.token_ids for r in replies] == [expected["a5"]] * 8
        assert (await system.generate(PROMPT, adapter="a5", **OPTIONS)).token_ids == expected["a5"]
        assert len(store.fetched) == 1


async def test_all_slots_in_use_is_said_after_a_bounded_wait(store: FakeAdapterStore, start: Start) -> None:
    async with serve_store(store) as address, start(address, max_adapters=1, adapter_seconds=1.0) as system:
        long = system.client.generate(PROMPT, adapter="a0", max_tokens=500, ignore_eos=True, seed=1)
        assert await first_tokens(long)
        with pytest.raises(ResourceExhaustedError) as raised:
            await system.generate(PROMPT, adapter="a1", **OPTIONS)
        assert raised.value.retry_after_seconds
        await long.aclose()
        assert (await system.generate(PROMPT, adapter="a1", **OPTIONS)).token_ids


async def test_who_joins_the_loading_of_an_adapter_may_wait_as_long_as_the_first(
    store: FakeAdapterStore, start: Start, adapters: list[Path]
) -> None:
    store.fetch_when = asyncio.Event()
    async with serve_store(store) as address, start(address, adapter_seconds=1.5) as system:
        async with grpc.aio.insecure_channel(system.verifier) as channel:
            stub = model_server_pb2_grpc.ModelServerServiceStub(channel)
            tenant = {"namespace": "tenant/a"}
            request = model_server_pb2.PrefetchAdapterRequest(adapter_digest=digest_of(adapters[1]), tenant=tenant)
            first = asyncio.ensure_future(stub.PrefetchAdapter(request).code())
            await asyncio.wait([first], timeout=0.8)
            second = asyncio.ensure_future(stub.PrefetchAdapter(request).code())
            assert await first is grpc.StatusCode.UNAVAILABLE
            store.fetch_when.set()
            assert await second is grpc.StatusCode.OK
    assert len(store.fetched) <= 2  # A fetch has a time-out of its own, which ends in the same moment.


async def test_an_adapter_of_nobody_is_a_mistake_and_not_a_store_that_is_away(
    store: FakeAdapterStore, start: Start, adapters: list[Path]
) -> None:
    digest = digest_of(adapters[1])
    opening = speculation_pb2.Open(
        token_ids=PROMPT, num_prompt_tokens=len(PROMPT), sampling={"seed": 1, "max_tokens": 2}, adapter_digest=digest
    )
    async with serve_store(store) as address, start(address) as system:
        async with grpc.aio.insecure_channel(system.verifier) as channel:
            prefetch = model_server_pb2_grpc.ModelServerServiceStub(channel).PrefetchAdapter(
                model_server_pb2.PrefetchAdapterRequest(adapter_digest=digest)
            )
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            stream = stub.Verify(iter([verifier_pb2.VerifyRequest(open=opening)]))
            for call in (prefetch, stream):
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "tenant.namespace" in (await call.details() or "")
    assert store.fetched == []


async def test_what_nobody_waits_for_any_more_is_not_loaded(
    store: FakeAdapterStore, start: Start, adapters: list[Path], expected: dict[str, list[int]]
) -> None:
    store.fetch_when = asyncio.Event()
    async with serve_store(store) as address, start(address, max_adapters=1, adapter_seconds=1.0) as system:
        async with grpc.aio.insecure_channel(system.verifier) as channel:
            request = model_server_pb2.PrefetchAdapterRequest(
                adapter_digest=digest_of(adapters[1]), tenant={"namespace": "tenant/a"}
            )
            asked = model_server_pb2_grpc.ModelServerServiceStub(channel).PrefetchAdapter(request)
            assert await asked.code() is grpc.StatusCode.UNAVAILABLE
        store.fetch_when.set()
        for name in ("a2", "a1", "a2"):
            assert (await system.generate(PROMPT, adapter=name, **OPTIONS)).token_ids == expected[name]
    assert store.fetched == [digest_of(adapters[n]) for n in (2, 1, 2)]


async def test_what_is_not_as_its_digest_says_is_fetched_once_more(
    store: FakeAdapterStore, start: Start, expected: dict[str, list[int]]
) -> None:
    store.num_fetches_to_damage = 1
    async with serve_store(store) as address, start(address) as system:
        assert (await system.generate(PROMPT, adapter="a5", **OPTIONS)).token_ids == expected["a5"]
        assert len(store.fetched) == 2
        store.num_fetches_to_damage = 1 << 20
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await system.generate(PROMPT, adapter="a4", timeout=4.0, **OPTIONS)
        store.num_fetches_to_damage = 0
        assert (await system.generate(PROMPT, adapter="a4", **OPTIONS)).token_ids == expected["a4"]


async def test_streams_go_on_without_the_store_and_new_ones_are_told_to_try_again(
    store: FakeAdapterStore, start: Start, expected: dict[str, list[int]]
) -> None:
    async with serve_store(store) as address, start(address) as system:
        running = system.client.generate(PROMPT, adapter="a5", **{**OPTIONS, "max_tokens": 400})
        tokens = await first_tokens(running)
        store.hang = True
        with pytest.raises(UnavailableError) as raised:
            await asyncio.wait_for(system.generate(PROMPT, adapter="a1", **OPTIONS), 20)
        assert raised.value.retry_after_seconds
        async for event in running:
            tokens.extend(event.delta.token_ids)
        assert len(tokens) == 400
        assert tokens[:16] == expected["a5"]
        assert (await system.generate(PROMPT, **OPTIONS)).token_ids == expected[""]
        store.hang = False
        assert (await system.generate(PROMPT, adapter="a1", **OPTIONS)).token_ids == expected["a1"]


async def test_a_loaded_adapter_is_nobodys_but_its_owners(
    store: FakeAdapterStore, start: Start, adapters: list[Path], expected: dict[str, list[int]]
) -> None:
    """Even where a gateway asked for it by digest."""
    store.owners = {"a5": {"tenant/a"}}
    async with serve_store(store) as address, start(address) as system:
        assert (await system.generate(PROMPT, adapter="a5", **OPTIONS)).token_ids == expected["a5"]
        async with Client(system.gateway, metadata=(("x-tenant", "b"),)) as other:
            for name in ("a5", "nothing"):
                with pytest.raises(NotFoundError):
                    await anext(other.generate(PROMPT, adapter=name, **OPTIONS))
        store.folders["mine"], store.owners["mine"] = adapters[5], {"tenant/b"}
        store.owners["a5"] = set()
        async with Client(system.gateway, metadata=(("x-tenant", "c"),)) as other:
            with pytest.raises(NotFoundError):
                await anext(other.generate(PROMPT, adapter="mine", **OPTIONS))


async def test_a_verifier_checks_by_itself_who_may_use_what_it_has_loaded(
    store: FakeAdapterStore, start: Start, adapters: list[Path]
) -> None:
    store.owners = {"a5": {"tenant/a"}}

    def opening(namespace: str, digest: str) -> verifier_pb2.VerifyRequest:
        return verifier_pb2.VerifyRequest(
            open=speculation_pb2.Open(
                token_ids=PROMPT, num_prompt_tokens=len(PROMPT), sampling={"seed": 1, "max_tokens": 3},
                adapter_digest=digest, tenant={"namespace": namespace},
            )
        )  # fmt: skip

    digest = digest_of(adapters[5])
    async with serve_store(store) as address, start(address) as system:
        async with grpc.aio.insecure_channel(system.verifier) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            found = [r.commit async for r in stub.Verify(iter([opening("tenant/a", digest)]))]
            assert sum(len(commit.token_ids) for commit in found) == 3
            for namespace, named, code in (
                ("tenant/b", digest, grpc.StatusCode.NOT_FOUND),
                ("tenant/a", "0" * 64, grpc.StatusCode.NOT_FOUND),
                ("tenant/a", digest.upper(), grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.Verify(iter([opening(namespace, named)])).read()
                assert raised.value.code() is code


async def test_a_verifier_loads_the_adapter_of_a_request_that_waits(
    store: FakeAdapterStore, start_gateway: StartGateway, adapters: list[Path]
) -> None:
    go = asyncio.Event()
    verifier = FakeVerifier(commit_when=go)
    settings = {"signing_key": new_signing_key(), "max_active_requests": 1}
    async with serve_store(store) as address, serve_fakes(verifier) as verifiers:
        async with start_gateway([verifiers], adapter_store=address, **settings) as system:
            first = asyncio.create_task(system.generate(PROMPT, max_tokens=6))
            await verifier.opened.wait()
            second = asyncio.create_task(system.generate(PROMPT, adapter="a2", max_tokens=6))
            await asyncio.wait_for(verifier.prefetched.wait(), 10)
            assert verifier.prefetches[0].adapter_digest == digest_of(adapters[2])
            assert len(verifier.opens) == 1
            go.set()
            assert (await first).token_ids == (await second).token_ids == continue_from(PROMPT, 6)
    assert [message.adapter_digest for message in verifier.opens] == ["", digest_of(adapters[2])]
