"""Adapters of callers at one, two and three stores, any of them dead, and of two models."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from gateway.model.replicas import Replicas
from gateway.model.served_model import ServedModel
from gateway.settings import ModelSettings
from gateway.tenants.adapters import Adapters, Resolved
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import FailedPreconditionError, NotFoundError, UnavailableError
from paceline.v1 import adapter_pb2
from services.adapter_store.client import AdapterStoreClient
from support.dead import dead_servers
from support.fake_store import FakeAdapterStore, serve_store
from support.fakes import FakeVerifier, serve_fakes

SOME_LIVE = [dead for count in (1, 2, 3) for dead in itertools.product([False, True], repeat=count) if not all(dead)]
CALLER = Caller("a")
FILES = [adapter_pb2.AdapterFile(name="adapter_config.json", num_bytes=4)]


@pytest.fixture(autouse=True)
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, high: 600 * high)


def announced(name: str) -> adapter_pb2.AdapterUpload:
    return adapter_pb2.AdapterUpload(name=name, files=FILES)


async def data(text: bytes = b"data") -> AsyncIterator[bytes]:
    for byte in text:
        yield bytes([byte])


@asynccontextmanager
async def adapters_at(*targets: str) -> AsyncIterator[Adapters]:
    async def check(store: AdapterStoreClient) -> bool:
        return await store.check_serving(2.0)

    adapters = Adapters(Replicas.connect("adapter store", targets, AdapterStoreClient, check), Grants(None))
    yield adapters
    await adapters.close()


@pytest.fixture
async def models(tokenizer_folder: str) -> AsyncIterator[list[ServedModel]]:
    """Two models that the same verifier runs."""
    async with serve_fakes(FakeVerifier()) as address:
        loaded = [
            await ServedModel.load(ModelSettings(id=name, tokenizer=str(tokenizer_folder), verifiers=(address,)))
            for name in ("one", "two")
        ]
        yield loaded
        for model in loaded:
            await model.close()


@pytest.mark.parametrize("dead", SOME_LIVE)
async def test_questions_and_uploads_go_to_a_living_store_at_once(
    models: list[ServedModel], dead: tuple[bool, ...]
) -> None:
    store = FakeAdapterStore()
    async with serve_store(store) as address, dead_servers(sum(dead)) as gone:
        addresses = iter([server.address for server in gone])
        async with adapters_at(*(next(addresses) if is_dead else address for is_dead in dead)) as adapters:
            for number in range(4):
                adapter = await adapters.upload(CALLER, models[0], announced(f"a{number}"), data())
                assert (adapter.model, adapter.num_bytes) == ("one", 4)
                assert (await adapters.get(CALLER, f"a{number}")).name == f"a{number}"
            assert len(await adapters.list(CALLER)) == 4
            assert await adapters.list(Caller("b")) == []
    assert [server.num_tries for server in gone] == [1] * sum(dead)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_stores_that_die_after_they_were_found_are_tried_once(models: list[ServedModel], count: int) -> None:
    """The dead one accepts no announcement, so nothing of the upload was lost."""
    stores = [FakeAdapterStore() for _ in range(count)]
    async with AsyncExitStack() as stack, AsyncExitStack() as first:
        doomed = await first.enter_async_context(serve_store(FakeAdapterStore()))
        addresses = [await stack.enter_async_context(serve_store(store)) for store in stores]
        adapters = await stack.enter_async_context(adapters_at(doomed, *addresses))
        await adapters.list(CALLER)
        await first.aclose()
        for number in range(4):
            await adapters.upload(CALLER, models[0], announced(f"a{number}"), data())
    assert sum(len(store.announced) for store in stores) == 4


async def test_an_upload_whose_data_have_begun_is_not_sent_again(models: list[ServedModel]) -> None:
    stores = [FakeAdapterStore(break_upload=True) for _ in range(2)]
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serve_store(store)) for store in stores]
        adapters = await stack.enter_async_context(adapters_at(*addresses))
        with pytest.raises(UnavailableError, match="half way") as caught:
            await adapters.upload(CALLER, models[0], announced("a"), data())
    assert caught.value.retry_after_seconds is not None
    assert sum(len(store.announced) for store in stores) == 1


async def test_stores_that_are_all_away_are_said_to_be(models: list[ServedModel]) -> None:
    async with dead_servers(2) as gone, adapters_at(*(server.address for server in gone)) as adapters:
        with pytest.raises(UnavailableError) as caught:
            await adapters.resolve(CALLER, models[0], "a")
        assert caught.value.retry_after_seconds is not None
    async with adapters_at() as none:
        with pytest.raises(FailedPreconditionError):
            await none.list(CALLER)
        with pytest.raises(NotFoundError):
            await none.resolve(CALLER, models[0], "a")


async def test_an_adapter_is_one_of_its_model_alone(models: list[ServedModel]) -> None:
    async with serve_store(FakeAdapterStore()) as address, adapters_at(address) as adapters:
        await adapters.upload(CALLER, models[0], announced("a"), data())
        await adapters.resolve(CALLER, models[0], "a")
        with pytest.raises(NotFoundError, match="for model 'one'"):
            await adapters.resolve(CALLER, models[1], "a")
        with pytest.raises(grpc.aio.AioRpcError):
            await adapters.resolve(Caller("b"), models[0], "a")
        assert await adapters.resolve(CALLER, models[1], "") == Resolved()
