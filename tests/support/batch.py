"""Batches to submit, and what is read of them."""

import asyncio
import json
from typing import Any

from paceline import Client
from paceline.v1 import batch_pb2

_ENDED = (batch_pb2.BATCH_STATE_COMPLETED, batch_pb2.BATCH_STATE_CANCELLED, batch_pb2.BATCH_STATE_EXPIRED)


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
