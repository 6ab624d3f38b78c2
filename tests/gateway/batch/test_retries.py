"""What a batch has no results for is run again, in a new batch."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from paceline import AlreadyExistsError, Client, FailedPreconditionError, NotFoundError, QuotaExceededError
from paceline.cli.app import app
from paceline.v1 import batch_pb2
from support.batch import Stalls, expected, jsonl, line, read, texts, until_ended
from support.databases import new_sqlite_url
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.system import StartGateway


async def test_what_failed_is_run_again_with_its_seeds(start_gateway: StartGateway, database_url: str) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    settings = {"database": database_url, "max_batch_streams": 1}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        client = system.client
        made = await client.create_batch(jsonl(*map(line, "abcd")), metadata={"for": "test"})
        while (await client.get_batch(made.batch.id)).counts.failed < 2:
            await asyncio.sleep(0.01)
        verifier.break_after = None
        first = await until_ended(client, made.batch.id)
        failed = [each["custom_id"] for each in await read(client, first.id, kind="errors")]
        opens = list(verifier.opens)
        again = await client.retry_batch(first.id, idempotency_key="again")
        done = await until_ended(client, again.id)
        lines = await read(client, again.id)
        assert (await client.retry_batch(first.id, idempotency_key="again")).id == again.id
        assert len(await read(client, first.id, kind="errors")) == len(failed)
        for batch_id, error in ((again.id, FailedPreconditionError), ("batch_none", NotFoundError)):
            with pytest.raises(error):
                await client.retry_batch(batch_id)
        with pytest.raises(AlreadyExistsError):
            await client.create_batch(jsonl(line("a")), idempotency_key="again")
    assert (done.state, done.counts.total, done.counts.completed) == (
        batch_pb2.BATCH_STATE_COMPLETED, len(failed), len(failed)
    )  # fmt: skip
    assert (done.retry_of, dict(done.metadata)) == (first.id, {"for": "test"})
    assert [each["custom_id"] for each in lines] == failed
    assert texts(lines) == {name: expected(name) for name in failed}
    seeds = {tuple(opening.token_ids[:1]): opening.sampling.seed for opening in opens}
    assert all(seeds[tuple(each.token_ids[:1])] == each.sampling.seed for each in verifier.opens[len(opens) :])


async def test_a_retry_is_copied_bit_by_bit_within_what_may_wait(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.batch.retries._CHUNK", 3)
    url = new_sqlite_url()
    key = await make_key(url, "a", max_batch_items=10)
    verifier = Stalls()
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], database=url, max_batch_streams=1, batch_lease_seconds=1.0) as system:
            async with Client(system.gateway, key=key) as client:
                names = [f"{number}" for number in range(8)]
                made = await client.create_batch(jsonl(*map(line, names)))
                with pytest.raises(FailedPreconditionError, match="at its end"):
                    await client.retry_batch(made.batch.id)
                await client.cancel_batch(made.batch.id)
                await until_ended(client, made.batch.id)
                others = await client.create_batch(jsonl(*map(line, "abc")))
                with pytest.raises(QuotaExceededError):
                    await client.retry_batch(made.batch.id)
                assert len((await client.list_batches()).batches) == 2
                verifier.go_on.set()
                await until_ended(client, others.batch.id)
                again = await client.retry_batch(made.batch.id)
                await until_ended(client, again.id)
                assert texts(await read(client, again.id)) == {name: expected(name) for name in names}


async def test_the_command_line_retries(start_gateway: StartGateway, tmp_path: Path) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        made = await system.client.create_batch(jsonl(line("a")))
        await until_ended(system.client, made.batch.id)
        verifier.break_after = None

        async def do(*arguments: str) -> str:
            environment = {"PACELINE_ADDRESS": system.gateway}
            done = await asyncio.to_thread(CliRunner().invoke, app, ("batch", *arguments), env=environment)
            assert done.exit_code == 0, done.output
            return done.stdout

        again = (await do("retry", made.batch.id, "--hours", "1", "--budget", "2")).strip()
        assert "completed: 1 of 1" in await do("watch", again)
        assert made.batch.id in await do("status", again)
        assert json.loads(await do("status", again, "--json"))["max_cost_nanos"] == "2000000000"
