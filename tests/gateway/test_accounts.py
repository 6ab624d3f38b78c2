"""A gateway with keys, limits and a ledger, through its real gRPC and in front of scripted services."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.lifespan import gateway_lifespan
from gateway.tenants.api_key import ALL_SCOPES
from paceline import (
    Client,
    FailedPreconditionError,
    PermissionDeniedError,
    QuotaExceededError,
    UnauthenticatedError,
)
from paceline.cli.app import app
from paceline.v1 import admin_pb2, usage_pb2
from services.common.settings import ServerSettings
from support.batch import Stalls
from support.databases import migrated, new_sqlite_url
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.postgres_server import PostgresServer
from support.served import served
from support.system import StartGateway, collect, first_tokens, gateway_settings

OPTIONS: dict[str, Any] = {"max_tokens": 6}
PRICES = {"prompt": "1", "completion": "2"}


async def rows_of(client: Client, **asked: Any) -> Sequence[usage_pb2.UsageRow]:
    """Usage, once there is some: of requests that were ended it is written behind their backs."""
    while not (rows := (await client.usage(**asked)).rows):
        await asyncio.sleep(0.01)
    return rows


async def test_a_tenant_is_made_given_a_key_and_served(start_gateway: StartGateway, database_url: str) -> None:
    admin = await make_key(database_url, "operator", ALL_SCOPES)
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], database=database_url, prices=PRICES) as system:
            async with Client(system.gateway, key=admin) as operator:
                await operator.create_tenant("acme", admin_pb2.Plan(max_streams=5))
                made = await operator.create_key("acme", "laptop", ["inference", "usage"])
                assert [key.name for key in await operator.list_keys("acme")] == ["laptop"]
                async with Client(system.gateway, key=made.secret) as client:
                    reply = await collect(client.generate("abc", **OPTIONS))
                    found = await client.usage(groups=["key", "kind"])
                    with pytest.raises(PermissionDeniedError):
                        await client.usage(tenant="operator")
                    with pytest.raises(PermissionDeniedError):
                        await client.list_keys()
                everybody = await operator.usage(groups=["tenant"], tenant="*")
            with pytest.raises(UnauthenticatedError):
                await system.generate("abc", **OPTIONS)
            (model,) = await system.client.list_models()
    (row,) = found.rows
    assert (row.key_id, row.kind, row.num_requests, row.num_completion_tokens) == (made.key.id, "interactive", 1, 6)
    assert row.cost_nanos == reply.usage.num_prompt_tokens * 1000 + 6 * 2000
    assert (row.num_drafted_tokens, row.num_accepted_tokens) == (
        reply.usage.num_drafted_tokens,
        reply.usage.num_accepted_tokens,
    )
    assert [row.tenant for row in everybody.rows] == ["acme"]
    assert (model.prices.prompt_nanos, model.prices.currency) == (1_000_000_000, "USD")


async def test_the_streams_of_a_revoked_key_end_and_are_billed(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    admin, key = await make_key(url, "operator", ALL_SCOPES), await make_key(url)
    verifier = Stalls()
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], database=url, key_seconds=0.1) as system:
            async with Client(system.gateway, key=admin) as operator, Client(system.gateway, key=key) as client:
                events = client.generate("abc", **OPTIONS)
                while not (await anext(events)).delta.token_ids:
                    pass
                await operator.revoke_key(key.split("_")[1])
                with pytest.raises(UnauthenticatedError, match="stopped holding"):
                    await anext(events)
                await verifier.all_closed.wait()
                with pytest.raises(UnauthenticatedError, match="does not hold"):
                    await collect(client.generate("abc", **OPTIONS))
                (row,) = await rows_of(operator, tenant="acme")
    assert (row.num_requests, row.num_completion_tokens) == (1, 3)


async def test_limits_refuse_with_whose_and_when(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, requests_per_minute=2)
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:
        async with Client(system.gateway, key=key) as client:
            for _ in range(2):
                await collect(client.generate("abc", **OPTIONS))
            with pytest.raises(QuotaExceededError) as caught:
                await collect(client.generate("abc", **OPTIONS))
    assert caught.value.subject == "acme"
    assert caught.value.retry_after_seconds is not None
    assert 0 < caught.value.retry_after_seconds <= 30


async def test_a_cost_limit_refuses_by_name(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, max_monthly_cost=1)
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], database=url, prices=PRICES) as system:
            async with Client(system.gateway, key=key) as client:
                await collect(client.generate("abc", **OPTIONS))
                with pytest.raises(QuotaExceededError, match="cost limit of 1e-09 USD a month") as caught:
                    await collect(client.generate("abc", **OPTIONS))
    assert caught.value.subject == "acme"


async def test_what_is_left_early_is_billed_for_what_was_produced(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(piece=1)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        count = 0
        events = system.client.generate("abc", max_tokens=300)
        async for event in events:
            count += len(event.delta.token_ids)
            if count >= 2:
                break
        await events.aclose()
        await verifier.all_closed.wait()
        (row,) = await rows_of(system.client)
    assert row.num_requests == 1
    assert 2 <= row.num_completion_tokens < 300
    assert row.num_prompt_tokens > 0


async def test_a_priority_is_cut_to_what_the_plan_allows(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    keys = [await make_key(url), await make_key(url, "trusted", max_priority=50)]
    verifier = FakeVerifier()
    async with serve_fakes(verifier) as address, start_gateway([address], database=url) as system:
        for key in keys:
            async with Client(system.gateway, key=key) as client:
                for priority in (99, -5):
                    await collect(client.generate("abc", priority=priority, **OPTIONS))
    assert [opening.priority for opening in verifier.opens] == [0, -5, 50, -5]


async def test_strangers_are_let_in_where_the_settings_say_so(tokenizer_folder: Path) -> None:
    outside = ServerSettings(host="0.0.0.0", port=0, grace_seconds=0.1)

    async def start(**more: Any) -> None:
        settings = {"server": outside, "database": new_sqlite_url(), **more}
        gateway = gateway_settings("fake", str(tokenizer_folder), [address], **settings)
        async with served(gateway_lifespan(gateway), outside):
            pass

    async with serve_fakes(FakeVerifier()) as address:
        with pytest.raises(FailedPreconditionError, match="no API keys"):
            await start()
        await start(anonymous=True)
        await start(tenant_header="x-tenant")
        url = new_sqlite_url()
        await make_key(url)
        await start(database=url)


async def test_the_command_line_goes_from_the_first_key_to_usage(
    start_gateway: StartGateway, tmp_path: Path, repository: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.sqlite'}"
    command = (sys.executable, "-m", "paceline", "keys", "first", "--database", url)
    first = await asyncio.create_subprocess_exec(*command, cwd=repository, stdout=asyncio.subprocess.PIPE)
    admin = (await first.communicate())[0].decode().strip()
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:

        async def do(*arguments: str, key: str = admin, code: int = 0) -> str:
            environment = {"PACELINE_ADDRESS": system.gateway, "PACELINE_API_KEY": key}
            done = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
            assert done.exit_code == code, done.output
            return done.stdout if not code else done.output

        await do("tenants", "create", "acme", "--max-streams", "3", "--max-monthly-cost", "1.5")
        assert "max_streams=3, max_monthly_cost=1.50" in await do("tenants", "list")
        await do("tenants", "update", "acme", "--tokens-per-minute", "5000")
        assert "max_streams" not in await do("tenants", "list")
        key = (await do("keys", "create", "--tenant", "acme", "--days", "1")).strip()
        await do("generate", "abc", "--max-tokens", "4", key=key)
        used = json.loads(await do("usage", "--json", key=key))
        assert used["total"]["num_completion_tokens"] == "4"
        assert "total" in await do("usage", "--by", "kind", key=key)
        assert (await do("usage", "--csv", "--by", "kind", key=key)).splitlines()[1].startswith("interactive,1,")
        successor = (await do("keys", "rotate", key.split("_")[1], "--hours", "1")).strip()
        await do("keys", "revoke", key.split("_")[1])
        listed = json.loads(await do("keys", "list", "--tenant", "acme", "--json"))
        assert ["revoke_time" in one for one in listed] == [True, False]
        assert "revoked" in await do("keys", "list")
        await do("usage", key=successor)
        assert "does not hold" in await do("usage", key=key[:-1] + "!", code=1)


async def test_a_stream_needs_the_database_for_none_of_its_tokens(start_gateway: StartGateway) -> None:
    server = PostgresServer()
    await server.start()
    verifier = Stalls()
    url = server.url()
    await migrated(url)
    key = await make_key(url, max_monthly_cost=10**9, tokens_per_minute=10**6)
    async with serve_fakes(verifier) as address, start_gateway([address], database=url) as system:
        async with Client(system.gateway, key=key) as client:
            events = client.generate("abc", max_tokens=300)
            tokens = await first_tokens(events)
            server.stop()
            verifier.go_on.set()
            async for event in events:
                tokens += event.delta.token_ids
            assert len(tokens) == 300
        await server.start()
    server.stop()
