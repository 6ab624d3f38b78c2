"""AdminService: tenants and their keys."""

from collections.abc import Awaitable, Callable

from gateway.grpc_api.timestamps import timestamp
from gateway.tenants.api_key import Scope, read_scopes
from gateway.tenants.identity import Identity
from gateway.tenants.key_store import KeyStore, KnownKey, KnownTenant
from gateway.tenants.plan import Plan
from paceline.v1 import admin_pb2, admin_pb2_grpc
from services.common.access import CallContext

_OVERLAP_SECONDS = 86400.0


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Between gRPC and the key store, for those with a key of scope admin."""

    def __init__(self, store: KeyStore, identity: Identity) -> None:
        self._store = store
        self._identity = identity

    async def CreateTenant(
        self, request: admin_pb2.CreateTenantRequest, context: CallContext
    ) -> admin_pb2.CreateTenantResponse:
        """See admin.proto."""
        return admin_pb2.CreateTenantResponse(tenant=await self._plan(self._store.create_tenant, request, context))

    async def UpdateTenant(
        self, request: admin_pb2.UpdateTenantRequest, context: CallContext
    ) -> admin_pb2.UpdateTenantResponse:
        """See admin.proto."""
        return admin_pb2.UpdateTenantResponse(tenant=await self._plan(self._store.update_tenant, request, context))

    async def ListTenants(
        self, request: admin_pb2.ListTenantsRequest, context: CallContext
    ) -> admin_pb2.ListTenantsResponse:
        """See admin.proto."""
        await self._identity.caller(context, Scope.ADMIN)
        return admin_pb2.ListTenantsResponse(tenants=map(_tenant, await self._store.tenants()))

    async def CreateKey(self, request: admin_pb2.CreateKeyRequest, context: CallContext) -> admin_pb2.CreateKeyResponse:
        """See admin.proto."""
        await self._identity.caller(context, Scope.ADMIN)
        lifetime = request.lifetime_seconds if request.HasField("lifetime_seconds") else None
        known, key = await self._store.create_key(
            request.tenant, request.name, read_scopes(list(request.scopes)), lifetime
        )
        return admin_pb2.CreateKeyResponse(key=_key(known), secret=key.text)

    async def RotateKey(self, request: admin_pb2.RotateKeyRequest, context: CallContext) -> admin_pb2.RotateKeyResponse:
        """See admin.proto."""
        await self._identity.caller(context, Scope.ADMIN)
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        known, key = await self._store.rotate_key(request.id, overlap)
        return admin_pb2.RotateKeyResponse(key=_key(known), secret=key.text)

    async def RevokeKey(self, request: admin_pb2.RevokeKeyRequest, context: CallContext) -> admin_pb2.RevokeKeyResponse:
        """See admin.proto."""
        await self._identity.caller(context, Scope.ADMIN)
        return admin_pb2.RevokeKeyResponse(key=_key(await self._store.revoke_key(request.id)))

    async def ListKeys(self, request: admin_pb2.ListKeysRequest, context: CallContext) -> admin_pb2.ListKeysResponse:
        """See admin.proto."""
        await self._identity.caller(context, Scope.ADMIN)
        return admin_pb2.ListKeysResponse(keys=map(_key, await self._store.keys_of(request.tenant)))

    async def _plan(
        self,
        change: Callable[[str, Plan], Awaitable[KnownTenant]],
        request: admin_pb2.CreateTenantRequest | admin_pb2.UpdateTenantRequest,
        context: CallContext,
    ) -> admin_pb2.Tenant:
        await self._identity.caller(context, Scope.ADMIN)
        return _tenant(await change(request.id, Plan.read(request.plan)))


def _tenant(known: KnownTenant) -> admin_pb2.Tenant:
    return admin_pb2.Tenant(id=known.id, plan=known.plan.message(), create_time=timestamp(known.created_at))


def _key(known: KnownKey) -> admin_pb2.ApiKey:
    return admin_pb2.ApiKey(
        id=known.id,
        tenant=known.tenant,
        name=known.name,
        scopes=sorted(known.scopes),
        create_time=timestamp(known.created_at),
        expire_time=timestamp(known.expires_at),
        revoke_time=timestamp(known.revoked_at),
    )
