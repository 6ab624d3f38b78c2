"""The calls of a client that are about webhooks."""

import grpc

from paceline.calls import Metadata, answer
from paceline.v1 import webhook_pb2, webhook_pb2_grpc


class WebhookCalls:
    """See webhook.proto."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._webhooks = webhook_pb2_grpc.WebhookServiceStub(channel)
        self._of_webhooks = tuple(metadata)

    async def create_webhook(self, url: str) -> webhook_pb2.CreateWebhookResponse:
        """Makes a webhook, whose `secret` cannot be had again."""
        request = webhook_pb2.CreateWebhookRequest(url=url)
        return await answer(self._webhooks.CreateWebhook(request, metadata=self._of_webhooks))

    async def list_webhooks(self) -> list[webhook_pb2.Webhook]:
        """Lists webhooks, oldest first."""
        request = webhook_pb2.ListWebhooksRequest()
        return list((await answer(self._webhooks.ListWebhooks(request, metadata=self._of_webhooks))).webhooks)

    async def rotate_webhook(
        self, webhook_id: str, overlap_seconds: float | None = None
    ) -> webhook_pb2.RotateWebhookSecretResponse:
        """Makes another secret, beside which the old one is used for a while more."""
        request = webhook_pb2.RotateWebhookSecretRequest(id=webhook_id, overlap_seconds=overlap_seconds)
        return await answer(self._webhooks.RotateWebhookSecret(request, metadata=self._of_webhooks))

    async def delete_webhook(self, webhook_id: str) -> None:
        """Deletes a webhook, with what waits to be sent to it."""
        request = webhook_pb2.DeleteWebhookRequest(id=webhook_id)
        await answer(self._webhooks.DeleteWebhook(request, metadata=self._of_webhooks))
