"""Batches through a gateway's real gRPC, in front of a scripted verifier: a line for each line, whatever happens."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from gateway.database.database import Database
from gateway.tenants.api_key import USUAL_SCOPES, Scope
from gateway.tenants.key_store import KeyStore
from gateway.tenants.plan import Plan
from paceline import (
    AbortedError,
    AlreadyExistsError,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    UnavailableError,
)
from paceline.cli.app import app
from paceline.v1 import batch_pb2
from support.batch import jsonl, line, read, texts, until, until_ended
from support.databases import new_sqlite_url
from support.fakes import FakeVerifier, continue_from, serve_fakes
from support.postgres_server import PostgresServer
from support.system import StartGateway

_FIRST = 33
PRICES = {"prompt": "1", "completion": "2", "batch_discount": 0.5}


class Stalls(FakeVerifier):
    """Produces three tokens a stream and waits then, until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def _commits(self, opening: Any, context: Any) -> AsyncIterator[Any]:
        async for response in super()._commits(opening, context):
            yield response
            await self.go_on.wait()


def expected(prompt: str, count: int = 6) -> str:
    """What the scripted verifier makes of a prompt without spaces."""
    return text_of(continue_from([ord(character) - _FIRST for character in prompt], count))


def text_of(token_ids: Sequence[int]) -> str:
    """As the tests' tokenizer has it: a token a byte, visible ones in front."""
    return "".join(chr(token_id + _FIRST) for token_id in token_ids)


async def make_key(url: str, tenant: str, scopes: frozenset[Scope] = USUAL_SCOPES, **plan: Any) -> str:
    database = Database(url)
    store = KeyStore(database)
    await store.create_tenant(tenant, Plan(**plan))
    _, key = await store.create_key(tenant, "", scopes)
    await database.close()
    return key.text


async def test_every_line_has_a_result_and_is_billed_once(start_gateway: StartGateway, database_url: str) -> None:
    lines = [line(f"item {number}", chat=number % 5 == 0) for number in range(50)]
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], database=database_url, prices=PRICES) as system:
            client = system.client
            made = await client.create_batch(jsonl(*lines), metadata={"for": "test"})
            assert (made.estimate.num_items, made.estimate.num_completion_tokens) == (50, 300)
            done = await until_ended(client, made.batch.id)
            found = await read(client, made.batch.id)
            by_end = [each async for each in client.batch_results(made.batch.id, finished_order=True)]
            rest = await read(client, made.batch.id, finished_order=True, cursor=by_end[19].cursor)
            (used,) = (await client.usage(groups=["kind"])).rows
            assert await read(client, made.batch.id, kind="errors") == []
    assert done.state == batch_pb2.BATCH_STATE_COMPLETED
    assert (done.counts.total, done.counts.completed, dict(done.metadata)) == (50, 50, {"for": "test"})
    assert [each["custom_id"] for each in found] == [each["custom_id"] for each in lines]
    assert {each["custom_id"] for each in rest} == {json.loads(each.line)["custom_id"] for each in by_end[20:]}
    for each in found:
        body = each["response"]["body"]
        assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (6, "length")
    assert (used.kind, used.num_requests, used.num_completion_tokens) == ("batch", 50, 300)
    assert used.num_prompt_tokens == sum(each["response"]["body"]["usage"]["prompt_tokens"] for each in found)
    assert used.cost_nanos == done.usage.cost_nanos
    assert done.usage.num_completion_tokens == 300


async def test_what_is_wrong_is_told_by_line_and_nothing_is_kept(start_gateway: StartGateway) -> None:
    wrong: dict[int, tuple[bytes, str]] = {
        2: (b"{", "line"),
        3: (b"[]", "line"),
        4: (b'{"custom_id": "\xff"}', "line"),
        5: (jsonl(line("stream", stream=True)), "body.stream"),
        6: (jsonl(line("first")), "custom_id"),
        7: (jsonl({**line("get"), "method": "GET"}), "method"),
        8: (jsonl({**line("url"), "url": "/v1/embeddings"}), "url"),
        9: (jsonl(line("model", model="other")), "body.model"),
        10: (jsonl(line("adapter", adapter="none")), "body.adapter"),
        11: (jsonl(line("long", prompt="x" * (6 << 20))), "line"),
        12: (jsonl(line("half \ud800")), "custom_id"),
        13: (jsonl(line("odd", top_p=7)), "body.top_p"),
    }
    data = jsonl(line("first")) + b"".join(part.rstrip(b"\n") + b"\n" for part, _ in wrong.values())
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        with pytest.raises(InvalidArgumentError) as caught:
            await system.client.create_batch(data)
        for nothing in (b"", b"\n\n"):
            with pytest.raises(InvalidArgumentError, match="at least one line"):
                await system.client.create_batch(nothing)
        assert list((await system.client.list_batches()).batches) == []
    told = [violation.field for violation in caught.value.violations]
    assert sorted(told) == sorted(f"line {number}: {field}" for number, (_, field) in wrong.items())


async def test_a_batch_whose_items_all_fail_is_done_with_an_error_each(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        made = await system.client.create_batch(jsonl(*[line(f"{number}") for number in range(3)]))
        done = await until_ended(system.client, made.batch.id)
        errors = await read(system.client, made.batch.id, kind="errors")
        assert await read(system.client, made.batch.id, kind="results") == []
    assert (done.state, done.counts.failed) == (batch_pb2.BATCH_STATE_COMPLETED, 3)
    assert [(each["error"]["code"], each["response"]) for each in errors] == [("invalid_argument", None)] * 3


async def test_a_cancelled_batch_keeps_and_bills_what_was_produced(
    start_gateway: StartGateway, database_url: str
) -> None:
    verifier = Stalls()
    settings = {"database": database_url, "max_batch_streams": 2, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        client = system.client
        made = await client.create_batch(jsonl(*[line(f"{number}") for number in range(5)]))
        while verifier.num_open < 2:
            await asyncio.sleep(0.01)
        first = await client.cancel_batch(made.batch.id)
        assert first.state == batch_pb2.BATCH_STATE_CANCELLING
        await client.cancel_batch(made.batch.id)
        done = await until_ended(client, made.batch.id)
        lines = await read(client, made.batch.id)
        (used,) = (await client.usage(groups=["kind"])).rows
        await verifier.all_closed.wait()
        assert (await client.cancel_batch(made.batch.id)).state == batch_pb2.BATCH_STATE_CANCELLED
    assert (done.state, done.counts.cancelled) == (batch_pb2.BATCH_STATE_CANCELLED, 5)
    assert [each["error"]["code"] for each in lines] == ["batch_cancelled"] * 5
    partial = [each["partial"]["usage"]["completion_tokens"] for each in lines if "partial" in each]
    assert sum(partial) == used.num_completion_tokens == done.usage.num_completion_tokens
    assert used.num_requests == 2


async def test_an_expired_batch_can_be_read(start_gateway: StartGateway) -> None:
    verifier = Stalls()
    settings = {"max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        made = await system.client.create_batch(jsonl(line("a"), line("b")), completion_seconds=1)
        done = await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
    assert (done.state, done.counts.expired) == (batch_pb2.BATCH_STATE_EXPIRED, 2)
    assert [each["error"]["code"] for each in lines] == ["batch_expired"] * 2


async def test_a_paused_batch_begins_nothing_until_it_is_resumed(start_gateway: StartGateway) -> None:
    verifier = Stalls()
    async with serve_fakes(verifier) as address, start_gateway([address], max_batch_streams=1) as system:
        client = system.client
        made = await client.create_batch(jsonl(*[line(f"{number}") for number in range(4)]))
        await verifier.opened.wait()
        assert (await client.pause_batch(made.batch.id)).state == batch_pb2.BATCH_STATE_PAUSED
        verifier.go_on.set()
        while (found := await client.get_batch(made.batch.id)).counts.completed < 1:
            await asyncio.sleep(0.01)
        assert found.state == batch_pb2.BATCH_STATE_PAUSED
        assert [each["custom_id"] for each in await read(client, made.batch.id, finished_order=True)] == [
            text_of(verifier.opens[0].token_ids)
        ]
        with pytest.raises(FailedPreconditionError, match="cancel it first"):
            await client.delete_batch(made.batch.id)
        await client.resume_batch(made.batch.id)
        await until_ended(client, made.batch.id)
        assert len(verifier.opens) == 4
        for change in (client.pause_batch, client.resume_batch):
            with pytest.raises(FailedPreconditionError, match="has ended"):
                await change(made.batch.id)
        await client.delete_batch(made.batch.id)
        with pytest.raises(NotFoundError):
            await client.get_batch(made.batch.id)


async def test_an_idempotency_key_makes_one_batch(start_gateway: StartGateway, database_url: str) -> None:
    data = jsonl(line("a"), line("b"))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=database_url) as system:
        client = system.client

        async def submit(lines: bytes = data) -> str:
            while True:
                try:
                    return (await client.create_batch(lines, idempotency_key="k")).batch.id
                except AbortedError as error:
                    assert error.reason == "UPLOAD_IN_PROGRESS"

        assert len(set(await asyncio.gather(*(submit() for _ in range(4))))) == 1
        assert (await client.create_batch(data, idempotency_key="other")).batch.id != await submit()
        with pytest.raises(AlreadyExistsError, match="another batch"):
            await submit(jsonl(line("c")))
        assert len((await client.list_batches()).batches) == 2


async def test_anothers_batch_does_not_exist(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    mine, theirs = await make_key(url, "a"), await make_key(url, "b")
    without = await make_key(url, "c", frozenset({Scope.INFERENCE}))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:
        async with Client(system.gateway, key=mine) as owner, Client(system.gateway, key=theirs) as other:
            made = await owner.create_batch(jsonl(line("a")))
            await until_ended(owner, made.batch.id)
            calls: list[Callable[[str], Awaitable[Any]]] = [
                other.get_batch, other.cancel_batch, other.pause_batch, other.resume_batch, other.delete_batch,
                lambda batch_id: read(other, batch_id),
            ]  # fmt: skip
            for call in calls:
                messages = set()
                for batch_id in (made.batch.id, "batch_none"):
                    with pytest.raises(NotFoundError) as caught:
                        await call(batch_id)
                    messages.add(str(caught.value).replace(batch_id, "ID"))
                assert len(messages) == 1
            assert list((await other.list_batches()).batches) == []
            assert len(await read(owner, made.batch.id)) == 1
        async with Client(system.gateway, key=without) as client:
            with pytest.raises(PermissionDeniedError, match="'batch'"):
                await client.create_batch(jsonl(line("a")))


async def test_what_waits_is_bounded_and_what_has_ended_is_not_counted(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, "a", max_batch_items=3, max_batch_tokens=100)
    verifier = Stalls()
    settings = {"database": url, "max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        async with Client(system.gateway, key=key) as client:
            made = await client.create_batch(jsonl(line("a"), line("b")))
            with pytest.raises(QuotaExceededError, match="3 items") as caught:
                await client.create_batch(jsonl(line("c"), line("d")))
            assert caught.value.subject == "a"
            with pytest.raises(QuotaExceededError, match="100 tokens"):
                await client.create_batch(jsonl(line("c", max_tokens=99)))
            await client.cancel_batch(made.batch.id)
            await until_ended(client, made.batch.id)
            verifier.go_on.set()
            await until_ended(client, (await client.create_batch(jsonl(*map(line, "abc")))).batch.id)


async def test_a_tenant_over_its_cost_limit_submits_nothing_more(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, "a", max_monthly_cost=1)
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], database=url, prices=PRICES) as system:
            async with Client(system.gateway, key=key) as client:
                await until_ended(client, (await client.create_batch(jsonl(line("a"), line("b")))).batch.id)
                with pytest.raises(QuotaExceededError, match="cost limit"):
                    await client.create_batch(jsonl(line("c")))


async def test_pages_stay_what_they_are_while_batches_are_added(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        client = system.client
        made = [(await client.create_batch(jsonl(line("a")))).batch.id for _ in range(5)]
        page = await client.list_batches(2)
        await client.create_batch(jsonl(line("a")))
        seen = [each.id for each in page.batches]
        while page.next_page_token:
            page = await client.list_batches(2, page.next_page_token)
            seen += [each.id for each in page.batches]
        assert seen == made[::-1]
        for batch_id in made:
            await until(client, batch_id, batch_pb2.BATCH_STATE_COMPLETED)
        assert len((await client.list_batches(states=["completed"])).batches) >= 5
        assert not (await client.list_batches(states=["paused"])).batches
        assert not (await client.list_batches(states=["paused"] * 300_000)).batches
        with pytest.raises(InvalidArgumentError):
            await client.list_batches(2, "nonsense")


async def test_a_dry_run_says_what_it_would_take_and_keeps_nothing(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], prices=PRICES) as system:
        made = await system.client.create_batch(jsonl(line("abcd"), line("abcdefgh")), dry_run=True)
        assert not (await system.client.list_batches()).batches
    assert (made.estimate.num_prompt_tokens, made.estimate.num_completion_tokens) == (3, 12)
    assert made.estimate.cost_nanos == (3 * 1000 + 12 * 2000) // 2


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


async def test_a_database_that_goes_away_and_comes_back_costs_no_item(
    start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = PostgresServer(tmp_path_factory.mktemp("gone"))
    await server.start()
    verifier = Stalls()
    settings = {"database": server.url(), "max_batch_streams": 4, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        names = [f"{number}" for number in range(12)]
        made = await system.client.create_batch(jsonl(*map(line, names)))
        await verifier.opened.wait()
        server.stop()
        verifier.go_on.set()
        with pytest.raises(UnavailableError, match="database"):
            await system.client.get_batch(made.batch.id)
        await server.start()
        await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
        (used,) = (await system.client.usage(groups=["kind"])).rows
    server.stop()
    assert texts(lines) == {name: expected(name) for name in names}
    assert (used.num_requests, used.num_completion_tokens) == (12, 72)


async def test_the_command_line_submits_watches_and_reads(start_gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_bytes(jsonl(line("a"), line("b")))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:

        async def do(*arguments: str, given: bytes | None = None, code: int = 0) -> str:
            environment = {"PACELINE_ADDRESS": system.gateway}
            done = await asyncio.to_thread(CliRunner().invoke, app, ("batch", *arguments), given, env=environment)
            assert done.exit_code == code, done.output
            return done.stdout if not code else done.output

        assert "2 items" in await do("estimate", str(file))
        batch_id = (await do("submit", str(file), "--note", "for=test", "--key", "k")).strip()
        assert (
            await do("submit", "-", "--note", "for=test", "--key", "k", given=file.read_bytes())
        ).strip() == batch_id
        assert "completed: 2 of 2 completed, 0 failed" in await do("watch", batch_id)
        lines = [json.loads(each) for each in (await do("results", batch_id)).splitlines()]
        assert texts(lines) == {"a": expected("a"), "b": expected("b")}
        assert json.loads(await do("status", batch_id, "--json"))["counts"]["completed"] == "2"
        assert "for" in await do("status", batch_id)
        assert batch_id in await do("list", "--state", "completed")
        await do("delete", batch_id)
        assert "batch" in await do("status", batch_id, code=1)
        assert "no file" in await do("submit", str(tmp_path / "none"), code=1)
