"""Everything about batches that a gateway runs: opened once, and ended with all that it began."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from gateway.batch.acceptance import DAY_SECONDS, Acceptance
from gateway.batch.batches import Batches
from gateway.batch.execution import Execution
from gateway.batch.leases import Leases
from gateway.batch.pins import Pins
from gateway.batch.results import Results
from gateway.batch.retries import Retries
from gateway.batch.upload import Uploads
from gateway.batch.worker import Worker
from gateway.clock import time_of_day
from gateway.generation.generation import Generation
from gateway.model.catalogue import Catalogue
from gateway.settings import GatewaySettings
from gateway.tenants.adapters import Adapters
from gateway.tenants.tenancy import Tenancy

_BESIDE_BYTES = 1 << 20
"""What a line may hold beside its prompt."""


class Work(NamedTuple):
    """What callers ask of batches."""

    batches: Batches
    uploads: Uploads
    retries: Retries
    results: Results
    worker: Worker


@asynccontextmanager
async def open_work(
    settings: GatewaySettings,
    tenancy: Tenancy,
    generation: Generation,
    catalogue: Catalogue,
    adapters: Adapters,
) -> AsyncIterator[Work]:
    """Works on batches while the block lasts."""
    database = tenancy.database
    found, acceptance, pins = Batches(database), Acceptance(database), Pins(catalogue, adapters)
    most = settings.max_prompt_bytes + _BESIDE_BYTES
    uploads = Uploads(found, acceptance, pins, catalogue, tenancy.accounts, tenancy.prices, most)
    retries = Retries(database, found, acceptance, pins, tenancy.accounts)
    worker = Worker(
        Leases(database, tenancy.ledger, settings.batch_lease_seconds),
        found,
        acceptance,
        Execution(generation, pins, tenancy.accounts, time_of_day),
        settings.max_batch_streams,
        settings.batch_days * DAY_SECONDS,
    )
    async with worker.running():
        yield Work(found, uploads, retries, Results(database), worker)
