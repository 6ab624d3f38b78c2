"""Two gateways share a database and a batch, and are killed while they work: each item has one line, and one bill.

PACELINE_KILLS and PACELINE_BATCH_ITEMS make it longer.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from gateway.batch.batches import Batches
from gateway.database.database import Database
from gateway.database.tables import usage_days, usage_requests
from paceline import Client, UnavailableError
from paceline.v1 import batch_pb2
from support.batch import jsonl, line, read, texts, until_ended
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.redis_server import free_ports

NUM_KILLS = int(os.environ.get("PACELINE_KILLS", "2"))
NUM_ITEMS = int(os.environ.get("PACELINE_BATCH_ITEMS", "60"))
_FIRST = 33
_ROOT = Path(__file__).resolve().parents[2]


class Slow(FakeVerifier):
    """Takes a while for each token."""

    async def _commits(self, opening: Any, context: Any) -> AsyncIterator[Any]:
        async for response in super()._commits(opening, context):
            await asyncio.sleep(0.03)
            yield response


class Gateway:
    """A gateway process on a port of its own."""

    def __init__(self, tokenizer: str, verifier: str, database_url: str) -> None:
        self.port = free_ports(1)[0]
        self._settings = {
            "models": [{"id": "fake", "tokenizer": tokenizer, "verifiers": [verifier]}],
            "server": {"port": self.port, "grace_seconds": 0.1},
            "telemetry": {"log_level": "WARNING"},
            "database": database_url,
            "batch_lease_seconds": 1.0,
            "max_batch_streams": 8,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "paceline", "serve", "gateway", "--settings", "-"),
            cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._settings).encode())
        await self._process.stdin.drain()
        self._process.stdin.close()

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


async def submit(client: Client, data: bytes) -> str:
    while True:
        try:
            return (await client.create_batch(data, idempotency_key="once")).batch.id
        except UnavailableError:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(120 + 30 * NUM_KILLS)
async def test_killed_gateways_lose_nothing_and_do_nothing_twice(database_url: str, tokenizer_folder: Path) -> None:
    with_cancel = not database_url.startswith("sqlite")
    chance = random.Random(7)
    database = Database(database_url)
    batches = Batches(database)
    items = {f"item-{number}": 4 + number % 5 for number in range(NUM_ITEMS)}
    data = jsonl(*[line(custom_id, max_tokens=count) for custom_id, count in items.items()])
    async with serve_fakes(Slow(piece=1)) as verifier:
        gateways = [Gateway(str(tokenizer_folder), verifier, database_url) for _ in range(2)]
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        try:
            async with Client(gateways[0].address) as client:
                batch_id = await submit(client, data)
                for kill in range(NUM_KILLS):
                    wanted = NUM_ITEMS * (kill + 1) // (NUM_KILLS + 2)
                    while (await batches.get("default", batch_id)).num_ended < wanted:
                        await asyncio.sleep(0.01)
                    victim = chance.choice(gateways)
                    await victim.kill()
                    await victim.start()
                if with_cancel:
                    await batches.cancel("default", batch_id)
                while (await batches.get("default", batch_id)).ended_at is None:
                    await asyncio.sleep(0.02)
                while True:
                    try:
                        done = await until_ended(client, batch_id)
                        lines = await read(client, batch_id)
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.05)
        finally:
            for gateway in gateways:
                await gateway.kill()
    assert [each["custom_id"] for each in lines] == list(items)
    assert all((each["response"] is None) != (each["error"] is None) for each in lines)
    counts = done.counts
    assert counts.completed + counts.failed + counts.cancelled == counts.total == NUM_ITEMS
    assert not counts.failed
    assert bool(counts.cancelled) == with_cancel
    assert (done.state == batch_pb2.BATCH_STATE_CANCELLED) == with_cancel
    for custom_id, text in texts(lines).items():
        prompt = [ord(character) - _FIRST for character in custom_id]
        assert text == "".join(chr(token + _FIRST) for token in continue_from(prompt, items[custom_id]))
    bodies = [each["response"]["body"] if each["response"] else each.get("partial") for each in lines]
    used = sum(body["usage"]["completion_tokens"] for body in bodies if body)
    async with database.read() as connection:
        sums = select(func.sum(usage_days.c.num_completion_tokens), func.sum(usage_days.c.num_requests))
        tokens, requests = (await connection.execute(sums)).one()
        rows = (await connection.execute(select(func.count()).select_from(usage_requests))).scalar_one()
    assert (tokens, requests) == (used, rows)
    assert rows >= counts.completed
    await database.close()
