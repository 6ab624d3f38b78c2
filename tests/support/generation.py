"""The gateway's core with nothing in front of it, and a tokenizer and services behind it."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.generation.accounting import Accounting
from gateway.generation.admission import Admission
from gateway.generation.generation import Generation
from gateway.generation.outcome import Record
from gateway.metrics import GatewayMetrics
from gateway.model.catalogue import Catalogue
from gateway.model.replicas import Replicas
from gateway.model.served_model import ServedModel
from gateway.tenants.adapters import Adapters
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from gateway.tenants.limits import Allowance, Limits
from support.system import gateway_settings


class RecordedMetrics(GatewayMetrics):
    """Remembers what was recorded."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission)
        self.ended: list[Record] = []

    def record_end(self, record: Record) -> None:
        super().record_end(record)
        self.ended.append(record)


class OpenAccounts:
    """Lets every request run, and counts nothing."""

    @asynccontextmanager
    async def request(self, caller: Caller) -> AsyncIterator[Allowance]:
        with Limits().request(caller.tenant, caller.plan) as allowance:
            yield allowance

    def request_id(self) -> str:
        return uuid.uuid4().hex

    def ended(self, record: Record) -> None:
        pass

    async def settled(self) -> None:
        pass


class Core(NamedTuple):
    """A core and what it leaves behind."""

    generation: Generation
    catalogue: Catalogue
    adapters: Adapters
    admission: Admission
    metrics: RecordedMetrics


StartCore = Callable[..., AbstractAsyncContextManager[Core]]
"""Starts a core for lists of verifiers and drafts."""


@pytest.fixture
def start_core(tokenizer_folder: Path) -> StartCore:
    """Starts the core of a gateway that serves one model."""

    @asynccontextmanager
    async def start(
        verifiers: list[str], drafts: list[str] | None = None, *, accounts: Accounting | None = None, **more: Any
    ) -> AsyncIterator[Core]:
        accounts = accounts or OpenAccounts()
        settings = gateway_settings("fake", str(tokenizer_folder), verifiers, drafts or (), **more)
        catalogue = Catalogue([await ServedModel.load(model) for model in settings.models])
        admission = Admission(settings.max_active_requests, settings.max_queued_requests)
        metrics = RecordedMetrics(admission)
        grants = Grants(None)
        adapters = Adapters(Replicas("adapter store", [], _unused), grants)
        try:
            generation = Generation(settings, catalogue, admission, grants, adapters, metrics, accounts)
            yield Core(generation, catalogue, adapters, admission, metrics)
        finally:
            await catalogue.close()

    return start


async def _unused(_client: Any) -> bool:
    return True
