"""The calls of a client that are about usage, tenants and keys."""

from collections.abc import Sequence

import grpc

from paceline.calls import Metadata, answer
from paceline.v1 import admin_pb2, admin_pb2_grpc, usage_pb2, usage_pb2_grpc


class AdminCalls:
    """See usage.proto and admin.proto."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._usage = usage_pb2_grpc.UsageServiceStub(channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._of_admin = tuple(metadata)

    async def usage(
        self, start_day: str = "", end_day: str = "", groups: Sequence[str] = (), tenant: str = ""
    ) -> usage_pb2.GetUsageResponse:
        """Adds up what was used; see GetUsageRequest in usage.proto. `groups` are such as "day", "key" or "model"."""
        request = usage_pb2.GetUsageRequest(
            start_day=start_day,
            end_day=end_day,
            groups=[usage_pb2.UsageGroup.Value(f"USAGE_GROUP_{group.upper()}") for group in groups],
            tenant=tenant,
        )
        return await answer(self._usage.GetUsage(request, metadata=self._of_admin))

    async def create_tenant(self, tenant: str, plan: admin_pb2.Plan | None = None) -> admin_pb2.Tenant:
        """Makes a tenant."""
        request = admin_pb2.CreateTenantRequest(id=tenant, plan=plan)
        return (await answer(self._admin.CreateTenant(request, metadata=self._of_admin))).tenant

    async def update_tenant(self, tenant: str, plan: admin_pb2.Plan) -> admin_pb2.Tenant:
        """Replaces what a tenant may use."""
        request = admin_pb2.UpdateTenantRequest(id=tenant, plan=plan)
        return (await answer(self._admin.UpdateTenant(request, metadata=self._of_admin))).tenant

    async def list_tenants(self) -> list[admin_pb2.Tenant]:
        """Lists all tenants."""
        request = admin_pb2.ListTenantsRequest()
        return list((await answer(self._admin.ListTenants(request, metadata=self._of_admin))).tenants)

    async def create_key(
        self, tenant: str, name: str = "", scopes: Sequence[str] = (), lifetime_seconds: float | None = None
    ) -> admin_pb2.CreateKeyResponse:
        """Makes an API key, whose `secret` cannot be had again."""
        request = admin_pb2.CreateKeyRequest(tenant=tenant, name=name, scopes=scopes, lifetime_seconds=lifetime_seconds)
        return await answer(self._admin.CreateKey(request, metadata=self._of_admin))

    async def rotate_key(self, key_id: str, overlap_seconds: float | None = None) -> admin_pb2.RotateKeyResponse:
        """Makes a key in the place of another, which holds for a while more."""
        request = admin_pb2.RotateKeyRequest(id=key_id, overlap_seconds=overlap_seconds)
        return await answer(self._admin.RotateKey(request, metadata=self._of_admin))

    async def revoke_key(self, key_id: str) -> admin_pb2.ApiKey:
        """Ends a key."""
        request = admin_pb2.RevokeKeyRequest(id=key_id)
        return (await answer(self._admin.RevokeKey(request, metadata=self._of_admin))).key

    async def list_keys(self, tenant: str = "") -> list[admin_pb2.ApiKey]:
        """Lists the keys of a tenant, or all."""
        request = admin_pb2.ListKeysRequest(tenant=tenant)
        return list((await answer(self._admin.ListKeys(request, metadata=self._of_admin))).keys)
