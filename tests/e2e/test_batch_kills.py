"""Two gateways share a database and a batch; they, verifiers and the draft are killed while they work.

Each item has one line, that of an undisturbed run, and one bill. PACELINE_KILLS and PACELINE_BATCH_ITEMS make it
longer.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest
from sqlalchemy import func, select

from gateway.batch.batches import Batches
from gateway.database.database import Database
from gateway.database.tables import usage_days, usage_requests
from paceline import Client, UnavailableError
from paceline.v1 import batch_pb2
from support.batch import expected, jsonl, line, read, texts, until_ended
from support.processes import two_gateways

NUM_KILLS = int(os.environ.get("PACELINE_KILLS", "3"))
NUM_ITEMS = int(os.environ.get("PACELINE_BATCH_ITEMS", "60"))
_KINDS = ("gateway", "verifier", "draft")


async def submit(client: Client, data: bytes) -> str:
    while True:
        try:
            return (await client.create_batch(data, idempotency_key="once")).batch.id
        except UnavailableError:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(120 + 30 * NUM_KILLS)
async def test_killed_processes_lose_nothing_and_do_nothing_twice(database_url: str, tokenizer_folder: Path) -> None:
    with_cancel = not database_url.startswith("sqlite")
    chance = random.Random(7)
    database = Database(database_url)
    batches = Batches(database)
    items = {f"item-{number}": 4 + number % 5 for number in range(NUM_ITEMS)}
    data = jsonl(*[line(custom_id, max_tokens=count) for custom_id, count in items.items()])
    processes = two_gateways(str(tokenizer_folder), database_url, batch_lease_seconds=1.0, max_batch_streams=8)
    everyone = [process for kind in processes.values() for process in kind]
    # Each kind once, and any after that.
    kinds = [*chance.sample(_KINDS, len(_KINDS)), *chance.choices(_KINDS, k=NUM_KILLS)][:NUM_KILLS]
    await asyncio.gather(*(process.start() for process in everyone))
    try:
        async with Client(processes["gateway"][0].address) as client:
            batch_id = await submit(client, data)
            for number, kind in enumerate(kinds, 1):
                while (await batches.get("default", batch_id)).num_ended < NUM_ITEMS * number // (NUM_KILLS + 2):
                    await asyncio.sleep(0.01)
                victim = chance.choice(processes[kind])
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
        for process in everyone:
            await process.kill()
    assert [each["custom_id"] for each in lines] == list(items)
    assert all((each["response"] is None) != (each["error"] is None) for each in lines)
    counts = done.counts
    assert counts.completed + counts.failed + counts.cancelled == counts.total == NUM_ITEMS
    assert not counts.failed
    assert bool(counts.cancelled) == with_cancel
    assert (done.state == batch_pb2.BATCH_STATE_CANCELLED) == with_cancel
    for custom_id, text in texts(lines).items():
        assert text == expected(custom_id, items[custom_id])
    bodies = [each["response"]["body"] if each["response"] else each.get("partial") for each in lines]
    used = sum(body["usage"]["completion_tokens"] for body in bodies if body)
    async with database.read() as connection:
        sums = select(func.sum(usage_days.c.num_completion_tokens), func.sum(usage_days.c.num_requests))
        tokens, requests = (await connection.execute(sums)).one()
        rows = (await connection.execute(select(func.count()).select_from(usage_requests))).scalar_one()
    assert (tokens, requests) == (used, rows)
    assert rows >= counts.completed
    await database.close()
