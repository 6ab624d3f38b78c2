"""Who calls is what a key says, or a proxy that may, and nothing else."""

from typing import Any

import pytest

from gateway.database.database import Database
from gateway.tenants.api_key import ALL_SCOPES, USUAL_SCOPES, Scope
from gateway.tenants.identity import Caller, Identity, is_loopback
from gateway.tenants.key_store import KeyStore
from gateway.tenants.keys import Keys
from gateway.tenants.plan import LOCAL_PLAN, Plan
from paceline.errors import PermissionDeniedError, UnauthenticatedError


class Context:
    """As much of a call as says who makes it."""

    def __init__(self, *metadata: tuple[str, str], key: str = "", peer: str = "ipv4:127.0.0.1:4711") -> None:
        self._metadata = (*metadata, ("authorization", f"Bearer {key}")) if key else metadata
        self._peer = peer

    def invocation_metadata(self) -> Any:
        return self._metadata or None

    def peer(self) -> str:
        return self._peer


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


def identity(store: KeyStore, **settings: Any) -> Identity:
    return Identity(Keys(store, 1e-6, 0), **settings)


async def new_key(store: KeyStore, tenant: str = "a", scopes: frozenset[Scope] = USUAL_SCOPES) -> str:
    await store.create_tenant(tenant, Plan(max_streams=3))
    return (await store.create_key(tenant, "mine", scopes))[1].text


async def caller(identity: Identity, context: Context, scope: Scope = Scope.INFERENCE) -> Caller:
    return await identity.caller(context, scope)  # type: ignore[arg-type]


async def test_without_keys_and_header_all_callers_are_one_who_may_not_administer(store: KeyStore) -> None:
    everybody = identity(store)
    assert await caller(everybody, Context(("x-tenant", "a"))) == await caller(everybody, Context(key="anything"))
    assert (await caller(everybody, Context())).plan == LOCAL_PLAN
    with pytest.raises(PermissionDeniedError):
        await caller(everybody, Context(), Scope.ADMIN)


async def test_the_header_names_the_caller_who_may_not_administer(store: KeyStore) -> None:
    proxied = identity(store, tenant_header="x-tenant")
    found = await caller(proxied, Context(("other", "b"), ("x-tenant", "a")))
    assert (found.tenant, found.namespace, found.plan) == ("a", "tenant/a", Plan())
    with pytest.raises(PermissionDeniedError):
        await caller(proxied, Context(("x-tenant", "a")), Scope.ADMIN)


@pytest.mark.parametrize("metadata", [(), (("x-tenant", ""),), (("x-tenant", "a" * 129),), (("tenant", "a"),)])
async def test_who_is_not_named_is_not_served(store: KeyStore, metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(UnauthenticatedError, match="x-tenant"):
        await caller(identity(store, tenant_header="x-tenant"), Context(*metadata))


async def test_whoever_is_named_twice_is_not_served(store: KeyStore) -> None:
    """A proxy that appends leaves the client's own entry in front of its own."""
    with pytest.raises(UnauthenticatedError, match="exactly one"):
        context = Context(("x-tenant", "victim"), ("x-tenant", "a"))
        await caller(identity(store, tenant_header="x-tenant"), context)


async def test_a_key_says_who_calls_and_what_for(store: KeyStore) -> None:
    key = await new_key(store, "b", frozenset({Scope.INFERENCE}))
    found = await caller(identity(store), Context(key=key))
    assert (found.tenant, found.key_id, found.plan.max_streams) == ("b", key.split("_")[1], 3)
    with pytest.raises(PermissionDeniedError, match="'batch'"):
        await caller(identity(store), Context(key=key), Scope.BATCH)


@pytest.mark.parametrize("wrong", ["", "nothing", "pcl_abc_def", "other-secret", "é", "other-id"])
async def test_once_there_is_a_key_only_it_lets_in(store: KeyStore, wrong: str, caplog: Any) -> None:
    key = await new_key(store)
    shown = {"other-secret": key[:-1] + "!", "other-id": key.replace("pcl_", "pcl_0")}.get(wrong, wrong)
    with pytest.raises(UnauthenticatedError) as caught:
        await caller(identity(store), Context(key=shown))
    assert key.split("_")[2] not in str(caught.value) + caplog.text


async def test_a_revoked_key_does_not_let_in_and_does_not_open_the_door(store: KeyStore) -> None:
    key = await new_key(store)
    await store.revoke_key(key.split("_")[1])
    for context in (Context(key=key), Context()):
        with pytest.raises(UnauthenticatedError):
            await caller(identity(store), context)


async def test_the_header_is_taken_from_named_proxies_only_once_there_are_keys(store: KeyStore) -> None:
    key = await new_key(store, "a")
    proxied = identity(store, tenant_header="x-tenant", proxies=["10.0.0.0/8", "::1/128"])
    for peer in ("ipv4:10.1.2.3:80", "ipv6:%5B::1%5D:80", "ipv6:[::ffff:10.0.0.1]:80"):
        assert (await caller(proxied, Context(("x-tenant", "b"), peer=peer))).tenant == "b"
    for peer in ("ipv4:127.0.0.1:80", "ipv6:[::2]:80", "unix:/tmp/socket"):
        with pytest.raises(UnauthenticatedError, match="not taken from this peer"):
            await caller(proxied, Context(("x-tenant", "b"), key=key, peer=peer))
    assert (await caller(proxied, Context(key=key, peer="ipv4:10.1.2.3:80"))).tenant == "a"


async def test_a_tenant_that_a_proxy_names_has_its_plan(store: KeyStore) -> None:
    await store.create_tenant("a", Plan(requests_per_minute=7))
    found = await caller(identity(store, tenant_header="x-tenant"), Context(("x-tenant", "a")))
    assert found.plan.requests_per_minute == 7


async def test_anonymous_callers_are_served_beside_keys_where_the_settings_say_so(store: KeyStore) -> None:
    key = await new_key(store, "a", ALL_SCOPES)
    both = identity(store, anonymous=True)
    assert [(await caller(both, Context(key=shown))).tenant for shown in (key, "")] == ["a", "default"]
    with pytest.raises(PermissionDeniedError):
        await caller(both, Context(), Scope.ADMIN)
    with pytest.raises(UnauthenticatedError):
        await caller(both, Context(key=key + "0"))


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("unix:/tmp/s", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_what_others_reach(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one
