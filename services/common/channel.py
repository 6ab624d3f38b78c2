"""Channels between processes: as every client's, and spans travel with the calls."""

import grpc

from paceline import channel
from services.common.telemetry import tracing_client_interceptors


def open_channel(target: str, max_message_bytes: int = channel.MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A plaintext channel to a target such as "127.0.0.1:7102"; spans travel in its metadata when traces are on."""
    return channel.open_channel(target, max_message_bytes, tracing_client_interceptors())
