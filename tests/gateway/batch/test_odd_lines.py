"""Lines that are large, cut anywhere, in any alphabet, of any model."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings, ModelSettings
from paceline import Client, InvalidArgumentError
from paceline.v1 import model_pb2
from support.batch import jsonl, line, read, texts, until_ended, upload
from support.databases import new_sqlite_url
from support.fakes import INFO, FakeVerifier, serve_fakes
from support.served import SERVER, served
from support.system import StartGateway

_MEGABYTE = 1 << 20


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_a_line_of_ten_megabytes_is_taken_where_the_settings_let_it(start_gateway: StartGateway) -> None:
    data = jsonl(line("first"), line("long", prompt="x" * (10 * _MEGABYTE)), line("last"))
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], max_prompt_bytes=12 * _MEGABYTE) as system:
            made = await system.client.create_batch(data)
            await until_ended(system.client, made.batch.id)
            lines = await read(system.client, made.batch.id)
        async with start_gateway([address]) as system:
            with pytest.raises(InvalidArgumentError, match="line 2: line: has more than") as caught:
                await system.client.create_batch(data)
    assert [each["custom_id"] for each in lines] == ["first", "long", "last"]
    assert set(texts(lines)) == {"first", "last"}
    assert "context" in lines[1]["error"]["message"]
    assert len(caught.value.violations) == 1


async def test_an_upload_may_be_cut_anywhere(start_gateway: StartGateway) -> None:
    names = ["naïve", "数字", "🚴", "plain"]
    data = json.dumps(line("naïve"), ensure_ascii=False).encode() + b"\n\r\n" + b"".join(
        json.dumps(line(name), ensure_ascii=False).encode() + b"\r\n" for name in names[1:]
    )  # fmt: skip
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        for size in (1, 7, len(data)):
            made = await upload(system.gateway, _pieces(data.rstrip(), size))
            await until_ended(system.client, made.id)
            assert [each["custom_id"] for each in await read(system.client, made.id)] == names
        for place in (data.index("ï".encode()), data.index("数".encode()), data.index("🚴".encode())):
            broken = data[: place + 1] + b"\n" + data[place + 1 :]
            with pytest.raises(InvalidArgumentError, match="is not UTF-8: byte"):
                await upload(system.gateway, _pieces(broken, 5))
        assert len((await system.client.list_batches()).batches) == 3


async def test_lines_of_different_models_go_each_to_its_own(tokenizer_folder: Path) -> None:
    ids = ("one", "other")
    infos = [model_pb2.ModelInfo.FromString(INFO.SerializeToString()) for _ in ids]
    for model_id, info in zip(ids, infos, strict=True):
        info.id, info.revision_digest = model_id, model_id.encode().hex()
    verifiers = [FakeVerifier(info=info) for info in infos]
    names = [f"{model_id}-{number}" for number in range(5) for model_id in ids]
    async with serve_fakes(verifiers[0]) as first, serve_fakes(verifiers[1]) as second:
        models = tuple(
            ModelSettings(id=model_id, tokenizer=str(tokenizer_folder), verifiers=(address,))
            for model_id, address in zip(ids, (first, second), strict=True)
        )
        settings = GatewaySettings(models=models, server=SERVER, database=new_sqlite_url())
        async with served(gateway_lifespan(settings)) as address, Client(address) as client:
            await client.list_models()
            made = await client.create_batch(jsonl(*[line(name, model=name.partition("-")[0]) for name in names]))
            await until_ended(client, made.batch.id)
            lines = await read(client, made.batch.id)
            with pytest.raises(InvalidArgumentError, match=r"body\.model.*'one', 'other'"):
                await client.create_batch(jsonl(line("none")))
    assert [each["response"]["body"]["model"] for each in lines] == [name.partition("-")[0] for name in names]
    assert [len(verifier.opens) for verifier in verifiers] == [5, 5]
