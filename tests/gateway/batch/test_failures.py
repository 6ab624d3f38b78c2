"""What goes wrong beside a batch costs it no item."""

import asyncio

import grpc
import pytest

from gateway.database.database import Database
from paceline import Client, UnavailableError
from support.batch import PRICES, Stalls, expected, jsonl, line, read, text_of, texts, until_ended
from support.books import check_books
from support.databases import migrated
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.postgres_server import PostgresServer
from support.system import StartGateway, collect

_KINDS = {"interactive", "batch"}
POISON = ord("~") - 33


async def test_seeds_are_kept_so_that_a_repeated_execution_gives_the_same(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(break_after=1, break_code=grpc.StatusCode.INTERNAL)
    async with serve_fakes(verifier) as address, start_gateway([address], resume_seconds=0.05) as system:
        made = await system.client.create_batch(jsonl(line("a"), line("b", seed=7)))
        while {text_of(opening.token_ids[:1]) for opening in verifier.opens} != {"a", "b"}:
            await asyncio.sleep(0.01)
        verifier.break_after = None
        await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
    seeds = {(text_of(opening.token_ids[:1]), opening.sampling.seed) for opening in verifier.opens}
    assert len(seeds) == 2
    assert ("b", 7) in seeds
    assert texts(lines) == {"a": expected("a"), "b": expected("b")}


async def test_a_database_that_is_gone_for_longer_than_leases_last_costs_nothing(start_gateway: StartGateway) -> None:
    """Neither an item, nor a second execution, nor a request beside the batch."""
    server = PostgresServer()
    await server.start()
    await migrated(server.url())
    key = await make_key(server.url(), "a", max_monthly_cost=10**12)
    verifier, names = Stalls(), [f"{number}" for number in range(12)]
    settings = {"database": server.url(), "max_batch_streams": 4, "batch_lease_seconds": 6.0, "prices": PRICES}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        async with Client(system.gateway, key=key) as client:
            made = await client.create_batch(jsonl(*map(line, names)))
            while verifier.num_open < 4:
                await asyncio.sleep(0.01)
            server.stop()
            verifier.go_on.set()
            gone_until = asyncio.get_running_loop().time() + 8.0
            with pytest.raises(UnavailableError, match="the database cannot be used"):
                await client.get_batch(made.batch.id)
            num_beside = 0
            while asyncio.get_running_loop().time() < gone_until:
                reply = await collect(client.generate("beside", max_tokens=6))
                assert reply.text == expected("beside")
                num_beside += 1
            await server.start()
            done = await until_ended(client, made.batch.id)
            lines = await read(client, made.batch.id)
            while (used := {row.kind: row for row in (await client.usage(groups=["kind"])).rows}).keys() != _KINDS:
                await asyncio.sleep(0.05)
            while used["interactive"].num_requests < num_beside:
                used = {row.kind: row for row in (await client.usage(groups=["kind"])).rows}
    database = Database(server.url())
    await check_books(database, made.batch.id, lines, names, "a")
    await database.close()
    server.stop()
    assert texts(lines) == {name: expected(name) for name in names}
    assert (done.counts.completed, used["batch"].num_requests) == (12, 12)
    assert used["interactive"].num_requests == num_beside
    assert len(verifier.opens) == len(names) + num_beside


async def test_an_item_that_verifiers_die_of_fails_by_itself(start_gateway: StartGateway) -> None:
    names = ["a", "b", "~", "c"]
    verifiers = [FakeVerifier(crash_on=POISON) for _ in range(2)]
    async with serve_fakes(verifiers[0]) as one, serve_fakes(verifiers[1]) as other:
        async with start_gateway([one, other]) as system:
            made = await system.client.create_batch(jsonl(*map(line, names)))
            done = await until_ended(system.client, made.batch.id)
            lines = await read(system.client, made.batch.id)
    assert (done.counts.completed, done.counts.failed) == (3, 1)
    assert texts(lines) == {name: expected(name) for name in "abc"}
    assert [each["error"]["code"] for each in lines if each["error"]] == ["crashed_twice"]


async def test_that_an_item_crashed_a_verifier_is_known_when_it_is_run_again(start_gateway: StartGateway) -> None:
    """There is one verifier, and whoever is at it when it ends is told that there is none."""
    verifier = FakeVerifier(crash_on=POISON)
    async with serve_fakes(verifier) as address, start_gateway([address], resume_seconds=0.0) as system:
        made = await system.client.create_batch(jsonl(*map(line, "~a")))
        done = await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
    assert (done.counts.completed, done.counts.failed) == (1, 1)
    assert lines[0]["error"]["code"] == "crashed_twice"
    assert sum(POISON in opening.token_ids for opening in verifier.opens) == 2
