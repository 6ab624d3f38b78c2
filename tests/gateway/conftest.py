"""A gateway in front of scripted services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings
from system import SERVER, StartGateway, System, served
from tiny import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def start_gateway(tokenizer_folder: Path) -> StartGateway:
    """Starts a gateway for these verifiers and drafts."""

    @asynccontextmanager
    async def start(verifiers: list[str], drafts: list[str] | None = None, **settings: Any) -> AsyncIterator[System]:
        settings = {"resume_seconds": 5.0, **settings}
        gateway = GatewaySettings(
            tokenizer=str(tokenizer_folder),
            verifiers=tuple(verifiers),
            drafts=tuple(drafts or ()),
            server=SERVER,
            **settings,
        )
        async with served(gateway_lifespan(gateway)) as address, Client(address) as client:
            yield System(client, address, verifiers[0], drafts or [])

    return start
