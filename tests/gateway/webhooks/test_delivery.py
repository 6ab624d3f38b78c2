"""Messages arrive at least once, signed, whatever dies on the way; and nowhere but where they may."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.database.database import Database
from gateway.database.tables import webhook_messages
from gateway.webhooks.addresses import Addresses
from gateway.webhooks.delivery import TAKEN_SECONDS, Delivery, open_client
from gateway.webhooks.endpoints import Endpoints
from gateway.webhooks.outbox import Outbox, announce
from paceline.errors import NotFoundError, QuotaExceededError
from support.receiver import Received, Receiver, certified

LOOPBACK = ("127.0.0.0/8",)


class Names:
    """A resolver of names that says one thing after the other, the last of them again and again."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.num_asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.num_asked += 1
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]


@asynccontextmanager
async def delivering(
    database: Database, addresses: Addresses, client: httpx2.AsyncClient | None = None, seconds: float = TAKEN_SECONDS
) -> AsyncIterator[Delivery]:
    async with client or open_client() as opened:
        delivery = Delivery(Outbox(database, seconds), addresses, opened, pauses=(0.0, 0.0))
        async with delivery.running():
            yield delivery


async def tell(database: Database, number: int = 0) -> None:
    async with database.write() as connection:
        await announce(connection, "a", "batch.completed", {"id": f"b{number}"}, 1e9)


async def num_waiting(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(webhook_messages))).scalar_one())


async def until_done(database: Database) -> None:
    while await num_waiting(database):
        pass


def verified(received: Received, secret: str) -> Any:
    return Webhook(secret).verify(received.body, received.headers)


async def test_it_ends_though_something_happens_in_the_same_moment(database: Database) -> None:
    """`asyncio.wait_for` of Python 3.11 loses a cancellation that comes with what it waits for."""
    async with asyncio.timeout(10):
        async with delivering(database, Addresses(LOOPBACK)) as delivery:
            await asyncio.sleep(0.3)  # It has looked, and waits.
            delivery._wake.set()


async def test_a_message_is_signed_and_sent_again_until_it_arrives(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    endpoints = Endpoints(database, addresses)
    async with Receiver([500, 302, 204], location="http://127.0.0.1:1/").serving() as receiver:
        made = await endpoints.create("a", f"http://127.0.0.1:{receiver.port}/hook?x=1")
        await tell(database)
        async with delivering(database, addresses):
            received = await receiver.until(3)
            await until_done(database)
    assert {each.headers["webhook-id"] for each in received} == {received[0].headers["webhook-id"]}
    for each in received:
        said = verified(each, made.secret)
        assert (said["type"], said["data"]) == ("batch.completed", {"id": "b0"})
        assert (each.target, each.headers["content-type"]) == ("/hook?x=1", "application/json")
    assert (await endpoints.list("a"))[0].last_error is None


async def test_what_does_not_arrive_is_given_up_and_says_why(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    endpoints = Endpoints(database, addresses)
    async with Receiver([500]).serving() as receiver:
        await endpoints.create("a", f"http://127.0.0.1:{receiver.port}/")
        await tell(database)
        async with delivering(database, addresses):
            await until_done(database)
    assert len(receiver.received) == 3
    assert (await endpoints.list("a"))[0].last_error == "answered with status 500"


async def test_while_a_secret_is_rotated_both_sign(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    endpoints = Endpoints(database, addresses)
    async with Receiver().serving() as receiver:
        old = await endpoints.create("a", f"http://127.0.0.1:{receiver.port}/")
        new = await endpoints.rotate("a", old.row.id, 3600)
        async with delivering(database, addresses):
            await tell(database)
            await receiver.until(1)
            await endpoints.rotate("a", old.row.id, 0)
            await tell(database)
            await receiver.until(2)
    both, last = receiver.received
    assert verified(both, old.secret) == verified(both, new.secret)
    for secret in (old.secret, new.secret):
        with pytest.raises(WebhookVerificationError):
            verified(last, secret)


async def test_what_a_gateway_took_and_did_not_bring_is_sent_by_another(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    async with Receiver([0, 204]).serving() as receiver:
        await Endpoints(database, addresses).create("a", f"http://127.0.0.1:{receiver.port}/")
        await tell(database)
        async with delivering(database, addresses, seconds=0.2):
            await receiver.until(1)
        assert await num_waiting(database) == 1
        async with delivering(database, addresses):
            first, second = await receiver.until(2)
            await until_done(database)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_one_that_hangs_holds_up_no_other(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    endpoints = Endpoints(database, addresses)
    async with Receiver([0]).serving() as hangs, Receiver().serving() as works:
        for receiver in (hangs, works):
            await endpoints.create("a", f"http://127.0.0.1:{receiver.port}/")
        async with delivering(database, addresses):
            for number in range(3):
                await tell(database, number)
            received = await works.until(3)
            assert len(hangs.received) == 1
    assert sorted(json.loads(each.body)["data"]["id"] for each in received) == ["b0", "b1", "b2"]


async def test_a_receiver_that_says_it_is_gone_is_told_no_more(database: Database) -> None:
    addresses = Addresses(LOOPBACK)
    endpoints = Endpoints(database, addresses)
    async with Receiver([410, 204]).serving() as receiver:
        made = await endpoints.create("a", f"http://127.0.0.1:{receiver.port}/")
        for number in range(2):
            await tell(database, number)
        async with delivering(database, addresses):
            await until_done(database)
            await tell(database)
            assert await num_waiting(database) == 0
            assert (await endpoints.list("a"))[0].disabled_at is not None
            await endpoints.rotate("a", made.row.id, 0)
            await tell(database)
            await receiver.until(2)


async def test_a_name_that_leads_elsewhere_when_it_is_asked_again_is_not_followed(database: Database) -> None:
    """The name is asked for once an attempt, and what it says then is where the attempt goes or does not go."""
    names = Names("10.0.0.1", "127.0.0.1", "169.254.169.254")
    addresses = Addresses(LOOPBACK, names)
    async with Receiver().serving() as receiver:
        await Endpoints(database, addresses).create("a", f"http://hooks.example:{receiver.port}/")
        await tell(database)
        async with delivering(database, addresses):
            await receiver.until(1)
            await until_done(database)
    assert names.num_asked == 2
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"


async def test_the_certificate_has_to_be_that_of_the_name(database: Database, tmp_path: Path) -> None:
    addresses = Addresses(LOOPBACK, Names("127.0.0.1"))
    endpoints = Endpoints(database, addresses)
    server, trusting = certified(tmp_path, "hooks.example")
    async with Receiver().serving(server) as receiver:
        for name in ("other.example", "hooks.example"):
            await endpoints.create("a", f"https://{name}:{receiver.port}/")
        await tell(database)
        async with delivering(database, addresses, httpx2.AsyncClient(verify=trusting, trust_env=False)):
            await until_done(database)
    wrong, right = await endpoints.list("a")
    assert "certificate" in wrong.last_error.lower()
    assert right.last_error is None
    assert [each.headers["host"] for each in receiver.received] == [f"hooks.example:{receiver.port}"]


async def test_webhooks_are_their_tenants_alone_and_not_without_number(database: Database) -> None:
    endpoints = Endpoints(database, Addresses(()))
    made = [await endpoints.create("a", "https://hooks.example/") for _ in range(20)]
    with pytest.raises(QuotaExceededError):
        await endpoints.create("a", "https://hooks.example/")
    assert await endpoints.list("b") == []
    with pytest.raises(NotFoundError):
        await endpoints.rotate("b", made[0].row.id, 0)
    with pytest.raises(NotFoundError):
        await endpoints.delete("b", made[0].row.id)
    await tell(database)
    assert (await endpoints.list("a"))[0].num_waiting == 1
    await endpoints.delete("a", made[0].row.id)
    assert await num_waiting(database) == 19
