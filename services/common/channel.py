"""Channels between processes: as every client's, and spans travel with the calls."""

import grpc

from paceline import channel
from paceline.tls import Tls
from services.common.telemetry import tracing_client_interceptors


def open_channel(
    target: str, max_message_bytes: int = channel.MAX_MESSAGE_BYTES, tls: Tls | None = None
) -> grpc.aio.Channel:
    """A channel to a target such as "127.0.0.1:7102", in plaintext without `tls`; spans travel in its metadata when
    traces are on. Raises TlsError for files with which nothing can be encrypted.
    """
    return channel.open_channel(target, max_message_bytes, tracing_client_interceptors(), tls)
