"""What a draft's certificate can read: adapters that were uploaded for drafts, and nothing else."""

from pathlib import Path

import grpc

from paceline.v1 import adapter_pb2
from services.adapter_store.client import AdapterStoreClient
from services.common.channel import open_channel
from services.common.identities import Identity
from support.adapters import code_of, files, running_store
from support.tls import as_identity, make_certificates, server_of

TENANT = "tenant/a"


async def test_a_draft_reads_what_is_for_drafts(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    server = server_of(folder, Identity.ADAPTER_STORE)
    gateway = as_identity(folder, Identity.GATEWAY, Identity.ADAPTER_STORE)
    async with running_store(tmp_path / "adapters", tls=gateway, server_tls=server.tls) as store:
        adapter = await store.upload(*files(1))
        adapter = await store.upload(*files(2), role=adapter_pb2.ADAPTER_ROLE_DRAFT)
        assert adapter.digest != adapter.draft_digest
        found = {}
        for who in (Identity.VERIFIER, Identity.DRAFT):
            tls = as_identity(folder, who, Identity.ADAPTER_STORE)
            client = AdapterStoreClient(store.address, open_channel(store.address, tls=tls))
            token = store.mint.sequence_token(TENANT)
            assert await client.fetch(token, TENANT, adapter.draft_digest, 5) == files(2)
            if who is Identity.VERIFIER:
                found[who] = await client.fetch(token, TENANT, adapter.digest, 5)
            else:
                refused = await code_of(client.fetch(token, TENANT, adapter.digest, 5))
                assert refused is grpc.StatusCode.PERMISSION_DENIED
            await client.close()
        assert found == {Identity.VERIFIER: files(1)}
        # A gateway, which manages adapters, has no need of what is in them.
        assert await code_of(store.fetch(adapter.digest)) is grpc.StatusCode.PERMISSION_DENIED
