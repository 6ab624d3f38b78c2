"""Channels, set up the same way everywhere: in plaintext, or encrypted."""

from collections.abc import Sequence

import grpc

from paceline.tls import Tls
from paceline.tls_channel import TlsChannel

MAX_MESSAGE_BYTES = 64 << 20


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Message sizes, keepalive that notices within 13 s that a peer stands still, and quick reconnection."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 7_000),
        # How long a ping may go unanswered; gRPC takes keepalive's own time-out for longer than it says.
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A pod that was replaced has another address under the same name: half a minute is long to ask for it again.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name the least time that connecting may take: a distant peer and TLS need more than a pause.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]


def open_channel(
    target: str,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    tls: Tls | None = None,
) -> grpc.aio.Channel:
    """A channel of the running event loop to a target such as "127.0.0.1:7100".

    It is in plaintext without `tls`. Raises TlsError for files with which nothing can be encrypted.
    """
    options = channel_options(max_message_bytes)
    if tls is not None:
        return TlsChannel(target, tls, options, interceptors)
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
