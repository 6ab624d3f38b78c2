"""What a store keeps, and for whom: in a folder, and in object storage that speaks S3."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline.errors import from_call
from paceline.v1 import adapter_pb2
from services.adapter_store.folder_objects import FolderInUseError, own_folder
from services.common.lora.config import adapter_digest
from services.common.tokens import PUBLIC_NAMESPACE, TokenMint, new_signing_key
from support.adapters import Store, code_of, files, running_store


async def test_what_was_uploaded_can_be_resolved_listed_and_fetched(store: Store) -> None:
    config, weights = files()
    adapter = await store.upload(config, weights)
    assert adapter.digest == adapter_digest(config, weights)
    assert (adapter.rank, adapter.num_bytes, adapter.model) == (4, len(config) + len(weights), "tiny")
    assert list(adapter.target_modules) == ["down_proj", "q_proj", "v_proj"]
    assert await store.resolve() == adapter
    assert await store.fetch(adapter.digest) == (config, weights)
    await store.upload(*files(1), name="other")
    assert await store.names() == ["mine", "other"]
    await store.remove()
    assert await store.names() == ["other"]
    assert await code_of(store.resolve()) is grpc.StatusCode.NOT_FOUND
    assert await store.fetch(adapter.digest) == (config, weights), "for those who have it in use"


async def test_the_same_content_is_stored_once(store: Store, objects_of: Any) -> None:
    first = await store.upload(*files())
    again = await store.upload(*files(), name="again")
    theirs = await store.upload(*files(), tenant="tenant/b")
    assert first.digest == again.digest == theirs.digest
    assert len(await objects_of("adapters/")) == 2
    assert len(await objects_of("owners/")) == 2


async def test_a_name_is_moved_only_when_that_is_asked_for(store: Store) -> None:
    old = await store.upload(*files(0))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await store.upload(*files(1))
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert from_call(raised.value).resource_name == "mine"
    assert (await store.resolve()).digest == old.digest
    assert (await store.upload(*files(0))).digest == old.digest, "the same content again is no other"
    new = await store.upload(*files(1), replace=True)
    assert (await store.resolve()).digest == new.digest != old.digest
    assert await store.fetch(old.digest) == files(0)


async def test_tenants_do_not_see_each_other(store: Store) -> None:
    mine = await store.upload(*files())
    for call_theirs, call_nothing in (
        (store.resolve("mine", "tenant/b"), store.resolve("nothing", "tenant/b")),
        (store.remove("mine", "tenant/b"), store.remove("nothing", "tenant/b")),
        (store.fetch(mine.digest, "tenant/b"), store.fetch("0" * 64, "tenant/b")),
    ):
        said = []
        for call, name in ((call_theirs, "mine"), (call_nothing, "nothing")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            details = str(from_call(raised.value).details()).replace(name, "NAME").replace(mine.digest, "NAME")
            message = str(raised.value.details()).replace(name, "NAME").replace(mine.digest, "NAME")
            said.append((raised.value.code(), message.replace("0" * 64, "NAME"), details.replace("0" * 64, "NAME")))
        assert said[0] == said[1]
        assert said[0][0] is grpc.StatusCode.NOT_FOUND
    assert await store.names("tenant/b") == []
    theirs = await store.upload(*files(1), tenant="tenant/b")
    assert (await store.resolve()).digest == mine.digest
    assert (await store.resolve(tenant="tenant/b")).digest == theirs.digest
    await store.remove(tenant="tenant/b")
    assert await store.names() == ["mine"]


async def test_without_a_token_that_holds_nothing_is_answered(store: Store) -> None:
    other = TokenMint(new_signing_key(), 60)
    assert await code_of(store.resolve(token=other.owner_token("tenant/a"))) is grpc.StatusCode.UNAUTHENTICATED
    assert await code_of(store.resolve(token=store.mint.owner_token("tenant/b"))) is grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(store.upload(*files(), token=other.owner_token("tenant/a"))) is grpc.StatusCode.UNAUTHENTICATED
    wrong = store.upload(*files(), token=store.mint.owner_token("tenant/b"))
    assert await code_of(wrong) is grpc.StatusCode.PERMISSION_DENIED
    assert await code_of(store.client.fetch("", "tenant/a", "0" * 64, 5)) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_has_as_many_as_it_may(place: dict[str, Any], tmp_path: Path) -> None:
    async with running_store(tmp_path, max_adapters_per_namespace=2, **place) as store:
        for number in range(2):
            await store.upload(*files(number), name=f"a{number}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await store.upload(*files(2), name="a2")
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_call(raised.value).subject
        await store.upload(*files(2), name="a1", replace=True)
        await store.upload(*files(2), tenant="tenant/b")
        await store.remove("a0")
        await store.upload(*files(3), name="a2")


async def test_an_adapter_of_the_draft_stands_beside_the_targets(store: Store) -> None:
    draft = adapter_pb2.ADAPTER_ROLE_DRAFT
    assert await code_of(store.upload(*files(1), role=draft)) is grpc.StatusCode.NOT_FOUND
    target = await store.upload(*files(0))
    both = await store.upload(*files(1), role=draft)
    assert (both.digest, both.draft_digest) == (target.digest, adapter_digest(*files(1)))
    assert await store.resolve() == both
    assert await store.fetch(both.draft_digest) == files(1)
    replaced = await store.upload(*files(2), replace=True)
    assert (await store.resolve()).draft_digest == replaced.draft_digest == ""


async def test_a_folder_has_one_process(tmp_path: Path) -> None:
    async with running_store(tmp_path):
        with pytest.raises(FolderInUseError), own_folder(tmp_path):
            pass
    with own_folder(tmp_path):
        pass


async def test_the_same_content_again_changes_nothing(store: Store) -> None:
    target = await store.upload(*files(0))
    both = await store.upload(*files(1), role=adapter_pb2.ADAPTER_ROLE_DRAFT)
    assert (both.digest, both.create_time) == (target.digest, target.create_time)
    for replace in (False, True):
        assert await store.upload(*files(0), replace=replace) == both
    assert await store.upload(*files(1), role=adapter_pb2.ADAPTER_ROLE_DRAFT) == both
    assert await store.resolve() == both


async def test_what_engines_are_given_fetches_adapters_and_changes_none(store: Store) -> None:
    adapter = await store.upload(*files())
    token = store.mint.sequence_token("tenant/a", public=True)
    for call in (
        store.upload(*files(1), token=token),
        store.resolve(token=token),
        store.client.list(token, "tenant/a", 5),
        store.client.remove(token, "tenant/a", "mine", 5),
    ):
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED
    assert await store.client.fetch(token, "tenant/a", adapter.digest, 5) == files()
    assert await store.resolve() == adapter


async def test_the_namespace_that_tokens_share_has_no_adapters(store: Store) -> None:
    token, fetching = store.mint.owner_token(PUBLIC_NAMESPACE), store.mint.sequence_token("tenant/a", public=True)
    for call in (
        store.upload(*files(), tenant=PUBLIC_NAMESPACE, token=token),
        store.resolve(tenant=PUBLIC_NAMESPACE, token=token),
        store.client.list(token, PUBLIC_NAMESPACE, 5),
        store.client.remove(token, PUBLIC_NAMESPACE, "mine", 5),
        store.client.fetch(fetching, PUBLIC_NAMESPACE, "0" * 64, 5),
    ):
        assert await code_of(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_namespace_may_be_longer_than_a_files_name(store: Store) -> None:
    tenants = ["ä" * 120, "ä" * 119 + "b"]
    for number, tenant in enumerate(tenants):
        adapter = await store.upload(*files(number), tenant=tenant)
        assert await store.fetch(adapter.digest, tenant) == files(number)
    assert (await store.resolve(tenant=tenants[0])).digest != (await store.resolve(tenant=tenants[1])).digest
