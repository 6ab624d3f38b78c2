"""Batches to submit, a verifier that keeps them waiting, and what is read of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from sqlalchemy import insert

from gateway.database.database import Database
from gateway.database.tables import BATCH_COUNTS, batch_items, batches
from paceline import Client
from paceline.calls import answer
from paceline.sent import response_to_stream
from paceline.v1 import batch_pb2, batch_pb2_grpc
from support.fakes import FakeVerifier, continue_from

PRICES = {"prompt": "1", "completion": "2", "batch_discount": 0.5}
_FIRST = 33
_ENDED = (
    batch_pb2.BATCH_STATE_COMPLETED,
    batch_pb2.BATCH_STATE_CANCELLED,
    batch_pb2.BATCH_STATE_EXPIRED,
    batch_pb2.BATCH_STATE_FAILED,
)


class Stalls(FakeVerifier):
    """Produces three tokens a stream and waits then, until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def _commits(self, opening: Any, context: Any) -> AsyncIterator[Any]:
        async for response in super()._commits(opening, context):
            yield response
            await self.go_on.wait()


def line(custom_id: str, *, chat: bool = False, **body: Any) -> dict[str, Any]:
    """A line of a batch; fields of the body may be given."""
    if chat:
        said = {"messages": [{"role": "user", "content": custom_id}], "max_tokens": 6, **body}
    else:
        said = {"prompt": custom_id, "max_tokens": 6, **body}
    url = "/v1/chat/completions" if chat else "/v1/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": said}


def jsonl(*lines: Any) -> bytes:
    """Lines as a file has them."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def add_batch(database: Database, batch_id: str, size: int, tenant: str = "a", **fields: Any) -> None:
    """Puts a batch into a database whose items are not to be run."""
    row = {
        "id": batch_id, "tenant": tenant, "key_id": "k", "state": "queued", "options": "{}", "pins": "{}",
        "created_at": 1.0, "updated_at": 1.0, "expires_at": 5000.0, **dict.fromkeys(BATCH_COUNTS, 0),
        "num_items": size, **fields,
    }  # fmt: skip
    items = [
        {
            "batch": batch_id, "place": place, "custom_id": f"{place}", "is_chat": False, "request": b"",
            "affinity": f"{place % 2}", "state": 0, "num_attempts": 0, "not_before": 0.0,
        }
        for place in range(size)
    ]  # fmt: skip
    async with database.write() as connection:
        await connection.execute(insert(batches), [row])
        await connection.execute(insert(batch_items), items)


async def upload(address: str, data: AsyncIterator[bytes], **options: Any) -> batch_pb2.Batch:
    """Submits a batch whose data come as they come."""

    async def requests() -> AsyncIterator[batch_pb2.CreateBatchRequest]:
        yield batch_pb2.CreateBatchRequest(options=batch_pb2.BatchOptions(**options))
        async for piece in data:
            yield batch_pb2.CreateBatchRequest(data=piece)

    async with grpc.aio.insecure_channel(address) as channel:
        call = batch_pb2_grpc.BatchServiceStub(channel).CreateBatch(requests())
        return (await answer(response_to_stream(call))).batch


async def until_ended(client: Client, batch_id: str) -> batch_pb2.Batch:
    """A batch once it has ended."""
    return await until(client, batch_id, *_ENDED)


async def until(client: Client, batch_id: str, *states: int) -> batch_pb2.Batch:
    """A batch once it is in one of these states."""
    while (found := await client.get_batch(batch_id)).state not in states:
        await asyncio.sleep(0.02)
    return found


async def read(client: Client, batch_id: str, **asked: Any) -> list[dict[str, Any]]:
    """All lines that are there."""
    return [json.loads(each.line) async for each in client.batch_results(batch_id, **asked)]


def texts(lines: list[dict[str, Any]]) -> dict[str, str]:
    """What was produced, by custom id."""
    return {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in lines if each["response"]}


def expected(prompt: str, count: int = 6) -> str:
    """What the scripted verifier makes of a prompt without spaces."""
    return text_of(continue_from([ord(character) - _FIRST for character in prompt], count))


def text_of(token_ids: Sequence[int]) -> str:
    """As the tests' tokenizer has it: a token a byte, visible ones in front."""
    return "".join(chr(token_id + _FIRST) for token_id in token_ids)
