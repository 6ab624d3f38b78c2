"""A hundred thousand lines: accepted, in part run, cancelled, and read, a line each."""

import asyncio
import json

import pytest

from gateway.batch.results import Results
from gateway.database.database import Database
from paceline.v1 import batch_pb2
from support.batch import Stalls, jsonl, line, until_ended
from support.books import check_books
from support.fakes import serve_fakes
from support.system import StartGateway

NUM_LINES = 100_000


@pytest.mark.timeout(300)
async def test_a_hundred_thousand_lines_have_an_end_each(start_gateway: StartGateway, database_url: str) -> None:
    names = [f"{number}" for number in range(NUM_LINES)]
    verifier = Stalls()
    settings = {"database": database_url, "max_batch_streams": 4}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        made = await system.client.create_batch(jsonl(*map(line, names)))
        assert made.batch.counts.total == NUM_LINES
        while verifier.num_open < 4:
            await asyncio.sleep(0.01)
        verifier.go_on.set()
        while (await system.client.get_batch(made.batch.id)).counts.completed < 20:
            await asyncio.sleep(0.01)
        await system.client.cancel_batch(made.batch.id)
        done = await until_ended(system.client, made.batch.id)
    assert done.state == batch_pb2.BATCH_STATE_CANCELLED
    database = Database(database_url)
    asked = batch_pb2.ListBatchResultsRequest()
    lines = [json.loads(each.line) async for each in Results(database).lines(made.batch.id, asked)]
    await check_books(database, made.batch.id, lines, names)
    await database.close()
