"""Clients that know two gateways stream while one after the other is killed or stopped.

No token and no text differs, nothing comes twice, and each request is counted once. PACELINE_KILLS makes it longer.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tokenizers import Tokenizer

from gateway.database.database import Database
from gateway.database.tables import usage_days
from paceline import Client, SyncClient, UnavailableError
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.processes import Process, two_gateways
from support.redis_server import free_ports
from support.system import Reply, StartGateway, collect

NUM_KILLS = int(os.environ.get("PACELINE_KILLS", "4"))
NUM_STREAMS, NUM_TOKENS = 6, 40


async def until_ready(process: Process) -> None:
    async with Client(process.address) as client:
        while True:
            try:
                await client.tokenize("x")
                return
            except UnavailableError:
                await asyncio.sleep(0.05)


@pytest.mark.timeout(90 + 20 * NUM_KILLS)
async def test_streams_outlive_their_gateways(database_url: str, tokenizer_folder: Path) -> None:
    chance = random.Random(11)
    processes = two_gateways(str(tokenizer_folder), database_url)
    gateways, everyone = processes["gateway"], [process for kind in processes.values() for process in kind]
    await asyncio.gather(*(process.start() for process in everyone))
    replies: list[tuple[list[int], Reply]] = []
    is_over = asyncio.Event()

    async def stream(client: Client, number: int) -> None:
        for turn in range(1 << 20):
            if is_over.is_set():
                return
            prompt = [65 + number, 66 + turn % 20, 70]
            replies.append((prompt, await collect(client.generate(prompt, seed=1, max_tokens=NUM_TOKENS))))

    try:
        await asyncio.gather(*map(until_ready, gateways))
        async with Client([gateway.address for gateway in gateways]) as client:
            streams = [asyncio.create_task(stream(client, number)) for number in range(NUM_STREAMS)]
            for number in range(NUM_KILLS):
                await asyncio.sleep(chance.uniform(0.4, 1.2))
                victim = gateways[number % 2]
                os.kill(victim.pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
                await victim.kill()
                await victim.start()
                await until_ready(victim)
            is_over.set()
            await asyncio.gather(*streams)
    finally:
        for process in everyone:
            await process.kill()
    assert len(replies) > NUM_STREAMS
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    for prompt, reply in replies:
        assert reply.token_ids == continue_from(prompt, NUM_TOKENS)
        assert reply.text == tokenizer.decode(reply.token_ids)
        assert reply.usage.num_completion_tokens == NUM_TOKENS
    assert len({reply.started.request_id for _, reply in replies}) == len(replies)
    database = Database(database_url)
    async with database.read() as connection:
        sums = select(func.sum(usage_days.c.num_requests), func.sum(usage_days.c.num_prompt_tokens))
        requests, prompts = (await connection.execute(sums)).one()
        tokens = (await connection.execute(select(func.sum(usage_days.c.num_completion_tokens)))).scalar_one()
    await database.close()
    # A gateway that dies may take with it what it had not written yet of requests that ended just before.
    assert len(replies) - NUM_KILLS * NUM_STREAMS <= requests <= len(replies)
    assert prompts == 3 * requests
    # One that is stopped may have produced what its clients had not received yet.
    assert requests * NUM_TOKENS <= tokens <= requests * NUM_TOKENS + NUM_KILLS * NUM_STREAMS * NUM_TOKENS


async def test_a_call_goes_to_the_gateway_that_is_there(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as verifier, start_gateway([verifier]) as system:
        async with Client(f"127.0.0.1:{free_ports(1)[0]},{system.gateway}") as client:
            assert await client.tokenize("ab") == await system.client.tokenize("ab")
            assert [model.target.id for model in await client.list_models()] == ["fake"]
            reply = await collect(client.generate([70, 71], max_tokens=9))
            assert reply.token_ids == continue_from([70, 71], 9)


def test_the_blocking_client_takes_several_addresses_too() -> None:
    with SyncClient(["127.0.0.1:1", "127.0.0.1:2"]) as client, pytest.raises(UnavailableError):
        next(iter(client.generate("x", max_tokens=1)))
