"""Many short batches, whose replicas, tasks, connections and verifiers are gone at random moments.

Whatever happens each line has one end, results are those of an undisturbed run, the ledger has what results say, and
nothing runs once a batch has ended. PACELINE_BATCH_RUNS makes it longer, PACELINE_BATCH_SEED repeats one run.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import select

from gateway.batch.acceptance import Acceptance
from gateway.batch.batches import Batches
from gateway.batch.lines import KnownModel
from gateway.batch.pins import Pins
from gateway.batch.reading import Reader
from gateway.batch.results import Results
from gateway.batch.states import BatchState
from gateway.database.database import Database
from gateway.database.tables import batch_items
from gateway.settings import PriceSettings
from gateway.tenants.identity import Caller
from gateway.tenants.plan import NO_LIMITS
from gateway.tenants.prices import Prices
from paceline.v1 import batch_pb2
from support.batch import expected, jsonl, line, text_of, texts
from support.books import check_books
from support.databases import new_postgres_url, new_sqlite_url
from support.fakes import INFO, FakeVerifier, serve_fakes
from support.generation import Core, StartCore, start_core
from support.mortal import MortalDatabase, Replica, fast_clock

__all__ = ["start_core"]
NUM_RUNS = int(os.environ.get("PACELINE_BATCH_RUNS", "100"))
"""With each kind of database."""
SEED = os.environ.get("PACELINE_BATCH_SEED")
_AT_ONCE = 8
_MAX_ITEMS = 6
_LEASE_SECONDS = 1.0
"""Many times what a busy machine takes for a transaction: else items are taken from whoever is about to record them."""
_END_SECONDS = 300.0
_BROKEN = 0.02
"""Share of transactions of which the connection breaks."""
_MODELS = {"fake": KnownModel(INFO, 4, has_chat_template=False)}
_CALLER = Caller("default", "", plan=NO_LIMITS)
_PRICES = Prices({"fake": PriceSettings(prompt=Decimal(0), completion=Decimal(2))}, "USD")


@dataclass
class Moody(FakeVerifier):
    """Fails once or hangs for a moment, or does as it should: by the prompt, and by how often it was asked for it."""

    asked: Counter[str] = field(default_factory=Counter)

    async def _commits(self, opening: Any, context: Any) -> AsyncIterator[Any]:
        prompt = text_of(opening.token_ids[: opening.num_prompt_tokens])
        self.asked[prompt] += 1
        chance = random.Random(f"{prompt}/{self.asked[prompt]}")
        breaks_at = chance.choice((None, None, 0, 1)) if self.asked[prompt] == 1 else None
        code = chance.choice((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL))
        number = 0
        async for response in super()._commits(opening, context):
            if number == breaks_at:
                await context.abort(code, "broken by chance")
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.05)))
            yield response
            number += 1


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batch.worker._POLL_SECONDS", 0.1)
    monkeypatch.setattr("gateway.batch.worker._SWEEP_SECONDS", 0.2)
    monkeypatch.setattr("gateway.batch.worker._GATHER_SECONDS", 0.005)
    monkeypatch.setattr("services.common.backoff.Backoff.failed", lambda _: 0.02)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_whatever_dies_each_line_has_one_end_and_one_bill(
    kind: str, start_core: StartCore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue("postgres") if kind == "postgresql" else None
    seeds = [SEED] if SEED else [f"{random.randrange(1 << 32)}" for _ in range(NUM_RUNS)]
    places, states = asyncio.Semaphore(_AT_ONCE), Counter[str]()
    async with serve_fakes(Moody()) as address, start_core([address], resume_seconds=0.05) as core:
        await core.catalogue.get("fake").info()

        async def one(seed: str) -> None:
            async with places, asyncio.timeout(_END_SECONDS):
                url = new_sqlite_url(tmp_path) if server is None else await new_postgres_url(server)
                try:
                    async with aclosing(Run(seed, url, core)) as run:
                        states[await run.run()] += 1
                except BaseException as error:
                    error.add_note(f"PACELINE_BATCH_SEED={seed}")
                    raise

        async with asyncio.TaskGroup() as group:
            for seed in seeds:
                group.create_task(one(seed))
    assert SEED or len(states) > 1, states


class Run:
    """One batch, from its acceptance to its end."""

    def __init__(self, seed: str, url: str, core: Core) -> None:
        self._chance = random.Random(seed)
        self._names = [f"{seed}-{number}" for number in range(self._chance.randint(1, _MAX_ITEMS))]
        self._url = url
        self._core = core
        self._database = Database(url)
        self._batches = Batches(self._database, fast_clock)
        self._replicas: list[Replica] = []

    async def run(self) -> str:
        """The state that it ended in. Raises AssertionError for anything that must not be."""
        batch_id = await self._accept()
        for _ in range(self._chance.randint(1, 3)):
            self._start()
        disturbing = asyncio.create_task(self._disturb(batch_id))
        while (row := await self._batches.get(_CALLER.tenant, batch_id)).ended_at is None:
            await asyncio.sleep(0.05)
        await disturbing
        request = batch_pb2.ListBatchResultsRequest()
        lines = [json.loads(each.line) async for each in Results(self._database).lines(batch_id, request)]
        await check_books(self._database, batch_id, lines, self._names)
        found = texts(lines)
        assert found == {name: expected(name) for name in found}
        errors = {each["error"]["code"] for each in lines if each["error"]}
        assert errors <= {"batch_cancelled", "batch_expired", "budget_exceeded"}, errors
        assert row.num_failed == 0 or row.max_cost is not None
        assert row.cost <= (row.max_cost or row.cost)
        if row.state == BatchState.COMPLETED:
            assert len(found) == len(self._names)
        await self._check_still(batch_id)
        return str(row.state)

    async def aclose(self) -> None:
        for replica in self._replicas:
            await replica.stop()
        await self._database.close()

    async def _accept(self) -> str:
        acceptance, reader = Acceptance(self._database, fast_clock), Reader(_MODELS, _PRICES, 1 << 20)
        seconds = self._chance.choice((1e6, 1e6, 1e6, 60.0))
        budget = self._chance.choice((None, None, None, len(self._names) * 8000))
        batch_id = await acceptance.begin(_CALLER, seconds, "", {}, budget)
        assert batch_id is not None

        async def data() -> AsyncIterator[bytes]:
            yield jsonl(*map(line, self._names))

        async for rows in reader.rows(data(), batch_id):
            await acceptance.add(batch_id, rows)
        pinned = await Pins(self._core.catalogue, self._core.adapters).now(_CALLER, ())
        await acceptance.accept(_CALLER, batch_id, len(self._names), 1, reader.digest, pinned.text)
        return batch_id

    def _start(self) -> None:
        database = MortalDatabase(self._url, random.Random(self._chance.random()), _BROKEN)
        self._replicas.append(Replica(database, self._core, _PRICES, _LEASE_SECONDS))

    async def _disturb(self, batch_id: str) -> None:
        """What happens while it runs. At the end there is a replica."""
        for _ in range(self._chance.randint(0, 4)):
            await asyncio.sleep(self._chance.uniform(0, 0.15))
            match self._chance.randrange(8):
                case 0 | 1 | 2 if self._replicas:
                    await self._replicas.pop(self._chance.randrange(len(self._replicas))).kill()
                case 3 if self._replicas:
                    await self._replicas.pop().stop()
                case 4 | 5 if running := [task for task in asyncio.all_tasks() if _is_item(task)]:
                    self._chance.choice(running).cancel()
                case 6:
                    await self._batches.cancel(_CALLER.tenant, batch_id)
                case _:
                    self._start()
        if not self._replicas:
            self._start()

    async def _check_still(self, batch_id: str) -> None:
        """Whatever replicas look for now, they find nothing to do."""
        before = await self._items(batch_id)
        await asyncio.sleep(0.3)
        assert await self._items(batch_id) == before

    async def _items(self, batch_id: str) -> list[Any]:
        wanted = select(batch_items).where(batch_items.c.batch == batch_id).order_by(batch_items.c.place)
        async with self._database.read() as connection:
            return list(map(tuple, (await connection.execute(wanted)).all()))


def _is_item(task: "asyncio.Task[Any]") -> bool:
    return getattr(task.get_coro(), "__qualname__", "") == "Worker._run"
