"""WebhookService: where tenants are told of what happened."""

from typing import Any

from sqlalchemy import Row

from gateway.grpc_api.timestamps import timestamp
from gateway.tenants.api_key import Scope
from gateway.tenants.identity import Caller, Identity
from gateway.webhooks.endpoints import Endpoints
from paceline.v1 import webhook_pb2, webhook_pb2_grpc
from services.common.access import CallContext

_OVERLAP_SECONDS = 86400.0


class WebhookServicer(webhook_pb2_grpc.WebhookServiceServicer):
    """Between gRPC and the callers' webhooks."""

    def __init__(self, endpoints: Endpoints, identity: Identity) -> None:
        self._endpoints = endpoints
        self._identity = identity

    async def CreateWebhook(
        self, request: webhook_pb2.CreateWebhookRequest, context: CallContext
    ) -> webhook_pb2.CreateWebhookResponse:
        """See webhook.proto."""
        caller = await self._caller(context)
        row, secret = await self._endpoints.create(caller.tenant, request.url)
        return webhook_pb2.CreateWebhookResponse(webhook=_message(row), secret=secret)

    async def ListWebhooks(
        self, request: webhook_pb2.ListWebhooksRequest, context: CallContext
    ) -> webhook_pb2.ListWebhooksResponse:
        """See webhook.proto."""
        caller = await self._caller(context)
        return webhook_pb2.ListWebhooksResponse(webhooks=map(_message, await self._endpoints.list(caller.tenant)))

    async def RotateWebhookSecret(
        self, request: webhook_pb2.RotateWebhookSecretRequest, context: CallContext
    ) -> webhook_pb2.RotateWebhookSecretResponse:
        """See webhook.proto."""
        caller = await self._caller(context)
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        row, secret = await self._endpoints.rotate(caller.tenant, request.id, overlap)
        return webhook_pb2.RotateWebhookSecretResponse(webhook=_message(row), secret=secret)

    async def DeleteWebhook(
        self, request: webhook_pb2.DeleteWebhookRequest, context: CallContext
    ) -> webhook_pb2.DeleteWebhookResponse:
        """See webhook.proto."""
        caller = await self._caller(context)
        await self._endpoints.delete(caller.tenant, request.id)
        return webhook_pb2.DeleteWebhookResponse()

    async def _caller(self, context: CallContext) -> Caller:
        return await self._identity.caller(context, Scope.BATCH)


def _message(row: Row[Any]) -> webhook_pb2.Webhook:
    return webhook_pb2.Webhook(
        id=row.id,
        url=row.url,
        create_time=timestamp(row.created_at),
        disable_time=timestamp(row.disabled_at),
        num_waiting=row.num_waiting,
        last_error=row.last_error or "",
    )
