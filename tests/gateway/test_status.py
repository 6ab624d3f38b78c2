"""GetStatus: what a gateway says of itself and of the services that it knows, and to whom."""

import time

import pytest

from gateway.tenants.api_key import ALL_SCOPES
from gateway.tenants.key_store import KeyStore
from paceline import Client
from paceline.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from paceline.v1 import model_pb2
from paceline.v1 import operations_pb2 as pb
from services.adapter_store.lifespan import adapter_store_lifespan
from services.adapter_store.settings import AdapterStoreSettings
from services.common.incarnation import INCARNATION
from services.common.tokens import new_signing_key, public_key
from services.prefix_cache.lifespan import prefix_cache_lifespan
from services.prefix_cache.settings import PrefixCacheSettings
from services.process.facts import PACKAGE_VERSION
from services.process.servicer import add_process_service
from support.databases import new_sqlite_url
from support.fakes import INFO, FakeDraft, FakeVerifier, serve_fakes
from support.keys import make_key
from support.served import SERVER, served
from support.system import StartGateway

AWAY = "127.0.0.1:1"
OTHER = model_pb2.ModelInfo(id="other", vocab_size=300, max_context_tokens=64)


def by_role(status: pb.GetStatusResponse, role: "pb.ServiceRole.ValueType") -> list[pb.ServiceStatus]:
    return [service for service in status.services if service.role == role]


async def test_each_replica_is_told_of(start_gateway: StartGateway) -> None:
    loading, other = FakeVerifier(is_loading=True), FakeDraft(info=OTHER)
    async with serve_fakes(FakeVerifier()) as good, serve_fakes(loading) as late, serve_fakes(other) as unsuited:
        async with serve_fakes(FakeDraft()) as draft:
            async with start_gateway([good, late, AWAY], [draft, unsuited, AWAY]) as system:
                status = await system.client.get_status()
    verifiers, drafts = by_role(status, pb.SERVICE_ROLE_VERIFIER), by_role(status, pb.SERVICE_ROLE_DRAFT)
    ready, not_ready, away = pb.SERVICE_STATE_READY, pb.SERVICE_STATE_NOT_READY, pb.SERVICE_STATE_AWAY
    assert [(each.address, each.state) for each in verifiers] == [(good, ready), (late, not_ready), (AWAY, away)]
    assert [each.state for each in drafts] == [ready, pb.SERVICE_STATE_UNSUITED, away]
    assert {each.model for each in (*verifiers, *drafts)} == {"fake"}
    assert verifiers[0].model_info.vocab_size == INFO.vocab_size
    assert verifiers[0].takes_adapters
    assert "being loaded" in verifiers[1].problem
    assert drafts[1].problem == "other has 300 tokens and the model 256"
    assert "UNAVAILABLE" in drafts[2].problem
    assert not verifiers[0].version, "a service that does not know the question is no fault of the gateway"


async def test_what_stores_say_of_themselves_is_passed_on(
    start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = (public_key(new_signing_key()),)
    cache = PrefixCacheSettings(server=SERVER, token_keys=keys, disk_folder=tmp_path_factory.mktemp("blocks"))
    store = AdapterStoreSettings(server=SERVER, token_keys=keys, folder=tmp_path_factory.mktemp("adapters"))
    async with serve_fakes(FakeVerifier()) as verifier, served(prefix_cache_lifespan(cache)) as blocks:
        async with served(adapter_store_lifespan(store)) as adapters:
            settings = {"prefix_caches": (blocks, AWAY), "adapter_stores": (adapters,)}
            async with start_gateway([verifier], **settings) as system:
                status = await system.client.get_status()
    found, lost = by_role(status, pb.SERVICE_ROLE_PREFIX_CACHE)
    assert (found.state, found.version, lost.state) == (pb.SERVICE_STATE_READY, PACKAGE_VERSION, pb.SERVICE_STATE_AWAY)
    assert abs(found.clock_offset_seconds) <= found.round_trip_seconds
    assert [disk.use for disk in found.disks] == ["blocks"]
    (kept,) = by_role(status, pb.SERVICE_ROLE_ADAPTER_STORE)
    assert [disk.use for disk in kept.disks] == ["adapters"]
    assert 0 < kept.disks[0].free_bytes <= kept.disks[0].total_bytes
    assert not lost.HasField("clock_offset_seconds")
    assert (found.incarnation, kept.incarnation, lost.incarnation) == (INCARNATION, INCARNATION, "")
    assert status.gateway.incarnation == INCARNATION


async def test_a_clock_that_differs_is_measured(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        time = staticmethod(lambda: time.time() + 90.0)

    monkeypatch.setattr("services.process.servicer.time", Clock)
    verifier = FakeVerifier()

    async with serve_fakes(verifier, beside=add_process_service) as address, start_gateway([address]) as system:
        (found,) = (await system.client.get_status()).services
    assert abs(found.clock_offset_seconds - 90.0) <= found.round_trip_seconds


async def test_a_gateway_says_who_is_let_in_and_how_much_room_its_database_has(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address]) as system:
            gateway = (await system.client.get_status()).gateway
            assert (gateway.admission, gateway.is_exposed) == (pb.ADMISSION_EVERYBODY, False)
            assert gateway.version == PACKAGE_VERSION
            assert [disk.use for disk in gateway.disks] == ["database"]
            assert gateway.disks[0].free_bytes > 0
            assert abs(gateway.clock_seconds - time.time()) < 60


async def test_once_there_are_keys_it_takes_one_of_scope_admin(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    usual, admin = await make_key(url), await make_key(url, scopes=ALL_SCOPES)
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:
        with pytest.raises(UnauthenticatedError):
            await system.client.get_status()
        async with Client(system.gateway, key=usual) as client:
            with pytest.raises(PermissionDeniedError):
                await client.get_status()
        async with Client(system.gateway, key=admin) as client:
            assert (await client.get_status()).gateway.admission == pb.ADMISSION_KEYS


@pytest.mark.parametrize("front", [{"anonymous": True}, {"tenant_header": "x-tenant"}])
async def test_behind_a_front_strangers_may_not_know(start_gateway: StartGateway, front: dict[str, object]) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], **front) as system:
        async with Client(system.gateway, [("x-tenant", "acme")]) as client:
            with pytest.raises(PermissionDeniedError):
                await client.get_status()


async def test_services_are_told_of_while_the_database_is_away(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(_: KeyStore) -> bool:
        raise UnavailableError("the database cannot be used for now")

    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        await system.client.get_status()
        monkeypatch.setattr(KeyStore, "has_keys", lost)
        status = await system.client.get_status()
    assert status.gateway.admission == pb.ADMISSION_UNSPECIFIED
    assert [service.state for service in status.services] == [pb.SERVICE_STATE_READY]
