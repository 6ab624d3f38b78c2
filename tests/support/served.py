"""Servers with the real server's life, on free ports; no service is imported for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.server import Lifespan, running_server
from services.common.settings import ServerSettings

SERVER = ServerSettings(port=0, grace_seconds=0.2)


@asynccontextmanager
async def served(lifespan: Lifespan, settings: ServerSettings = SERVER) -> AsyncIterator[str]:
    """Address of a server with this lifespan."""
    async with running_server(settings, lifespan) as server:
        yield f"127.0.0.1:{server.port}"
