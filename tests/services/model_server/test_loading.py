"""Whoever starts a process with an engine can follow how far its model is loaded."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from paceline.internal.v1.model_server_pb2 import WatchLoadingResponse as Loading
from services.common.channel import open_channel
from services.common.interceptors import ErrorInterceptor
from services.common.server import Served
from services.engine import model_runner
from services.engine.config import EngineConfig
from services.engine.loading import Report
from services.engine.model import LoadedModel, load_model
from services.model_server.client import ModelServerClient
from services.verifier.lifespan import verifier_lifespan
from services.verifier.settings import VerifierSettings


@asynccontextmanager
async def starting(model: str) -> AsyncIterator[tuple[ModelServerClient, Served]]:
    """A verifier from its start on, and a client of it."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor(30.0)])
    settings = VerifierSettings(engine=EngineConfig(model=model, device="cpu", num_threads=1, num_blocks=16))
    async with verifier_lifespan(settings)(server) as served:
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        client = ModelServerClient(address, open_channel(address))
        try:
            yield client, served
        finally:
            await client.close()
            await server.stop(0)


async def followed(client: ModelServerClient, told: threading.Semaphore) -> list[tuple[int, float]]:
    """All that a watcher is told."""
    seen = []
    async for progress in client.watch_loading():
        seen.append((progress.phase, progress.fraction))
        told.release()
    return seen


async def test_loading_is_followed_from_the_start_until_the_model_is_ready(
    target_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Semaphore(0)

    def load_when_watched(config: EngineConfig, report: Report) -> LoadedModel:
        for _ in range(2):
            told.acquire(timeout=30)
        return load_model(config, report)

    monkeypatch.setattr(model_runner, "load_model", load_when_watched)
    async with starting(target_folder) as (client, served):
        async with asyncio.timeout(60):
            watched = await asyncio.gather(followed(client, told), followed(client, told))
        for seen in watched:
            assert seen == sorted(seen)
            assert seen[0] == (Loading.PHASE_WEIGHTS, 0.0)
            assert seen[-1] == (Loading.PHASE_READY, 1.0)
            assert len(seen) > 2  # Who watches slowly is told the last of what happened meanwhile.
        assert served.ready is not None
        await served.ready()
        assert (await client.get_model(5)).vocab_size == 256
        assert [p.phase async for p in client.watch_loading(5)] == [Loading.PHASE_READY]


async def test_who_watches_is_told_that_loading_failed(tmp_path: Path) -> None:
    async with starting(str(tmp_path)) as (client, served):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(30):
                async for progress in client.watch_loading():
                    assert progress.phase != Loading.PHASE_READY
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "could not be loaded" in (raised.value.details() or "")
        assert served.ready is not None
        with pytest.raises(Exception, match=str(tmp_path)):
            await served.ready()
