"""The life of a gRPC server process, the same for every service.

The port is bound at once and health says NOT_SERVING while the service builds itself; then SERVING. On SIGTERM or
SIGINT health says NOT_SERVING, running streams finish within the grace period, and the service is torn down.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from paceline.channel import channel_options
from paceline.tls import TlsError
from services.common.checkpoint import CheckpointError
from services.common.health import HealthServicer
from services.common.identities import admission
from services.common.interceptors import ErrorInterceptor
from services.common.reflection import add_reflection
from services.common.server_tls import server_credentials
from services.common.settings import ProcessSettings, ServerSettings
from services.common.telemetry import setup_telemetry, shutdown_telemetry, tracing_server_interceptors

_log = logging.getLogger(__name__)
_MAX_PENDING_RPCS = 100_000
_MAX_PENDING_SECONDS = 300
_MIN_PING_INTERVAL_MS = 5_000
"""How often peers may ask whether the connection lives, in streams that wait for a long time; by default gRPC ends
connections that ask more than thrice in five minutes."""
_FAILED_SECONDS = 0.5
_SERVING = health_pb2.HealthCheckResponse.SERVING


class Served(NamedTuple):
    """What a lifespan has added to the server."""

    service_names: Sequence[str]
    """Full names, such as "paceline.internal.v1.VerifierService"."""
    ready: Callable[[], Awaitable[object]] | None = None
    """Returns when the service can serve; None when it can from the start."""
    failed: "asyncio.Future[None] | None" = None
    """Done when the service can no longer serve."""
    drain: Callable[[], None] | None = None
    """Ends streams that would not end by themselves; called when the server stops taking new ones."""


Lifespan = Callable[[grpc.aio.Server], AbstractAsyncContextManager[Served]]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that says SERVING."""

    port: int
    failed: "asyncio.Future[None] | None"


def serve(name: str, settings: ProcessSettings, lifespan: Lifespan) -> None:
    """Runs a process until it is told to stop (exit 0) or its service fails (exit 1).

    What makes a model unfit to be served, or certificates to encrypt with, is said in its one sentence.
    """
    gc.freeze()  # What was imported stays.
    gc.enable()
    setup_telemetry(f"paceline-{name}", settings.telemetry, settings.model_in_telemetry)
    _log.info("settings: %s", settings.model_dump_json())
    try:
        is_healthy = asyncio.run(_serve(settings.server, lifespan))
    except (CheckpointError, TlsError) as error:
        sys.exit(str(error))
    shutdown_telemetry()
    logging.shutdown()
    # All is torn down and written. Taking an interpreter with torch in it apart as well would take a second or two.
    os._exit(0 if is_healthy else 1)


async def _serve(settings: ServerSettings, lifespan: Lifespan) -> bool:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    stop = asyncio.Event()
    building = True

    def on_signal() -> None:
        stop.set()
        if building and main is not None:
            main.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with running_server(settings, lifespan) as running:
            building = False
            # What the service was built of stays: collecting garbage among it would hold the event loop up each time.
            gc.collect()
            gc.freeze()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
            if running.failed is not None:
                waits.append(running.failed)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            healthy = stop.is_set()
            _log.info("stopping" if healthy else "stopping: the service failed")
    except asyncio.CancelledError:
        return stop.is_set()
    return healthy


@asynccontextmanager
async def running_server(settings: ServerSettings, lifespan: Lifespan) -> AsyncIterator[RunningServer]:
    """A server that serves what the lifespan adds, until the block ends. Port 0 takes a free one."""
    tls = settings.tls
    credentials = None if tls is None else server_credentials(tls)
    admit = admission(tls.trust_domain) if tls is not None and tls.client_ca is not None else None
    server = grpc.aio.server(
        interceptors=[*tracing_server_interceptors(), ErrorInterceptor(settings.first_message_seconds, admit)],
        options=[
            *channel_options(settings.max_message_bytes),
            ("grpc.so_reuseport", 0),
            # Bursts wait to be told how matters stand; by default gRPC cancels them without a word.
            ("grpc.server.max_pending_requests", _MAX_PENDING_RPCS),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_RPCS),
            ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_SECONDS),
            ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
    )
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    async with lifespan(server) as served:
        names = (*served.service_names, health.SERVICE_NAME)
        if settings.channelz:
            channelz.add_channelz_servicer(server)
        if settings.reflection:
            add_reflection(names, server)
        address = f"{settings.host}:{settings.port}"
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        _log.info("listening on %s:%d", settings.host, port)
        try:
            if served.ready is not None:
                await served.ready()
            for service in ("", *names):
                await servicer.set(service, _SERVING)
            _log.info("serving")
            try:
                yield RunningServer(port, served.failed)
            finally:
                await servicer.enter_graceful_shutdown()
                if served.drain is not None:
                    served.drain()
                has_failed = served.failed is not None and served.failed.done()
                # What has failed has told its streams; whoever still waits for it waits in vain.
                await server.stop(
                    min(_FAILED_SECONDS, settings.grace_seconds) if has_failed else settings.grace_seconds
                )
        finally:
            await server.stop(0)
