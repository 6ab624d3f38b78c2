"""Two models behind one gateway: each with its own verifiers, drafts, adapters and numbers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings, ModelSettings
from paceline.client import Client, Options
from paceline.errors import InvalidArgumentError, NotFoundError, UnavailableError
from support.databases import new_sqlite_url
from support.fakes import FakeDraft, FakeVerifier, continue_from, serve_fakes
from support.served import SERVER, served
from support.system import Reply, collect

PROMPT = [70, 71, 72]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """What gateways of this test measure."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("gateway.metrics.meter", provider.get_meter)
    return reader


def counted(reader: InMemoryMetricReader, name: str) -> dict[Any, Any]:
    """A counter, by the values of its attributes."""
    found: Any = reader.get_metrics_data()
    metrics = [m for r in found.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
    return {tuple(point.attributes.values()): point.value for metric in metrics for point in metric.data.data_points}


@asynccontextmanager
async def gateway(tokenizer: Path, **verifiers: tuple[str, str]) -> AsyncIterator[Client]:
    """A client of a gateway with these models, each of a verifier and a draft."""
    models = tuple(
        ModelSettings(id=name, tokenizer=str(tokenizer), verifiers=(verifier,), drafts=(draft,))
        for name, (verifier, draft) in verifiers.items()
    )
    settings = GatewaySettings(models=models, server=SERVER, database=new_sqlite_url())
    async with served(gateway_lifespan(settings)) as address, Client(address) as client:
        yield client


async def ask(client: Client, model: str, **options: Any) -> Reply:
    return await collect(client.generate(PROMPT, **Options(model=model, **{"max_tokens": 9, **options})))


async def test_requests_and_metrics_of_each_are_apart(tokenizer_folder: Path, reader: InMemoryMetricReader) -> None:
    verifiers, drafts = [FakeVerifier(), FakeVerifier(script=[65] * 9)], [FakeDraft(), FakeDraft()]
    async with serve_fakes(verifiers[0], drafts[0]) as a, serve_fakes(verifiers[1], drafts[1]) as b:
        async with gateway(tokenizer_folder, b=(b, b), a=(a, a)) as client:
            first, *seconds = await asyncio.gather(ask(client, "a"), ask(client, "b"), ask(client, "b"))
            assert [model.target.id for model in await client.list_models()] == ["a", "b"]
            assert (await client.list_models())[0].available
    assert (first.token_ids, first.started.model) == (continue_from(PROMPT, 9), "a")
    assert [(reply.token_ids, reply.started.model) for reply in seconds] == [([65] * 9, "b")] * 2
    assert [len(verifier.opens) for verifier in verifiers] == [1, 2]
    assert counted(reader, "paceline.request.completion_tokens") == {("a",): 9, ("b",): 18}
    ended = {labels: count for labels, count in counted(reader, "paceline.request.ended").items() if count}
    assert ended == {("a", "finished"): 1, ("b", "finished"): 2}


async def test_failovers_are_counted(tokenizer_folder: Path, reader: InMemoryMetricReader) -> None:
    async with serve_fakes(FakeVerifier(break_after=1)) as address:
        async with gateway(tokenizer_folder, a=(address, address)) as client:
            await ask(client, "a")
    assert counted(reader, "paceline.request.failovers") == {("a",): 2}


async def test_a_model_that_is_not_there_is_answered_with_those_that_are(tokenizer_folder: Path) -> None:
    async with serve_fakes(FakeVerifier()) as address:
        async with gateway(tokenizer_folder, a=(address, address), b=(address, address)) as client:
            with pytest.raises(NotFoundError, match="'a', 'b'") as caught:
                await ask(client, "c")
            assert caught.value.resource_name == "c"
            with pytest.raises(InvalidArgumentError, match="'a', 'b'"):
                await ask(client, "")


async def test_a_model_without_a_verifier_is_listed_and_unavailable_until_it_has_one(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, _high: 0.02)
    late = FakeVerifier(is_loading=True)
    async with serve_fakes(FakeVerifier()) as a, serve_fakes(late) as b:
        async with gateway(tokenizer_folder, a=(a, a), b=(b, b)) as client:
            assert (await ask(client, "a")).token_ids == continue_from(PROMPT, 9)
            found = {model.target.id: model.available for model in await client.list_models()}
            assert found == {"a": True, "b": False}
            with pytest.raises(UnavailableError) as caught:
                await ask(client, "b")
            assert caught.value.retry_after_seconds is not None
            late.is_loading = False
            await asyncio.sleep(0.05)
            assert (await ask(client, "b")).token_ids == continue_from(PROMPT, 9)
            assert all(model.available for model in await client.list_models())
