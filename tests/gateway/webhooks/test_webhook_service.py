"""From a batch's end to a receiver, through a gateway's real gRPC."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from standardwebhooks import Webhook
from typer.testing import CliRunner

from paceline import InvalidArgumentError
from paceline.cli.app import app
from support.batch import PRICES, Stalls, jsonl, line, until_ended
from support.fakes import FakeVerifier, serve_fakes
from support.receiver import Receiver
from support.system import StartGateway

LOOPBACK = ("127.0.0.0/8",)


async def test_each_way_to_end_is_told(start_gateway: StartGateway, database_url: str) -> None:
    settings: dict[str, Any] = {"database": database_url, "webhook_networks": LOOPBACK, "prices": PRICES}
    async with Receiver().serving() as receiver, serve_fakes(Stalls()) as stalls, serve_fakes(FakeVerifier()) as works:
        url = f"http://127.0.0.1:{receiver.port}/hook"
        async with start_gateway([stalls], batch_lease_seconds=1.0, **settings) as system:
            secret = (await system.client.create_webhook(url)).secret
            cancelled = await system.client.create_batch(jsonl(line("a")))
            await system.client.cancel_batch(cancelled.batch.id)
            await until_ended(system.client, cancelled.batch.id)
            expired = await system.client.create_batch(jsonl(line("a")), completion_seconds=1)
            await until_ended(system.client, expired.batch.id)
        async with start_gateway([works], **settings) as system:
            completed = await system.client.create_batch(jsonl(line("a")), metadata={"for": "test"})
            await until_ended(system.client, completed.batch.id)
            failed = await system.client.create_batch(jsonl(line("a")), max_cost_nanos=1)
            await until_ended(system.client, failed.batch.id)
            received = await receiver.until(4)
    told = [Webhook(secret).verify(each.body, each.headers) for each in received]
    ids = {each["type"]: each["data"]["id"] for each in told}
    assert ids == {
        "batch.cancelled": cancelled.batch.id, "batch.expired": expired.batch.id,
        "batch.completed": completed.batch.id, "batch.failed": failed.batch.id,
    }  # fmt: skip
    (done,) = (each["data"] for each in told if each["type"] == "batch.completed")
    assert (done["counts"]["completed"], done["metadata"], done["state"]) == (1, {"for": "test"}, "completed")


async def test_what_was_not_told_when_a_gateway_ended_is_told_by_the_next(
    start_gateway: StartGateway, database_url: str
) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    settings: dict[str, Any] = {"database": database_url, "webhook_networks": LOOPBACK}
    receiver = Receiver()
    async with receiver.serving():
        pass
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], **settings) as system:
            made = await system.client.create_webhook(f"http://127.0.0.1:{receiver.port}/")
            batch = await system.client.create_batch(jsonl(line("a")))
            await until_ended(system.client, batch.batch.id)
            while not (await system.client.list_webhooks())[0].last_error:
                await asyncio.sleep(0.01)
        async with receiver.serving(), start_gateway([address], **settings):
            (received,) = await receiver.until(1)
    assert Webhook(made.secret).verify(received.body, received.headers)["data"]["counts"]["failed"] == 1


async def test_an_address_of_this_machine_is_refused_by_default(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        for url in ("http://127.0.0.1:80/", "https://127.0.0.1/", "https://[::1]/"):
            with pytest.raises(InvalidArgumentError):
                await system.client.create_webhook(url)


async def test_the_command_line_keeps_webhooks(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:

        async def do(*arguments: str) -> str:
            environment = {"PACELINE_ADDRESS": system.gateway}
            done = await asyncio.to_thread(CliRunner().invoke, app, ("webhooks", *arguments), env=environment)
            assert done.exit_code == 0, done.output
            return done.stdout

        assert (await do("create", "https://hooks.example/")).startswith("whsec_")
        (listed,) = json.loads(await do("list", "--json"))
        assert listed["url"] in await do("list")
        assert (await do("rotate", listed["id"], "--hours", "1")).startswith("whsec_")
        await do("delete", listed["id"])
        assert json.loads(await do("list", "--json")) == []
