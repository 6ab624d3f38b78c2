"""A line for each line: of those that are done, and of those that fail."""

import json

import grpc

from paceline.v1 import batch_pb2
from support.batch import PRICES, jsonl, line, read, until_ended
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway


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


async def test_a_batch_whose_items_all_fail_is_done_with_an_error_each(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(break_after=0, break_code=grpc.StatusCode.INVALID_ARGUMENT)
    async with serve_fakes(verifier) as address, start_gateway([address]) as system:
        made = await system.client.create_batch(jsonl(*[line(f"{number}") for number in range(3)]))
        done = await until_ended(system.client, made.batch.id)
        errors = await read(system.client, made.batch.id, kind="errors")
        assert await read(system.client, made.batch.id, kind="results") == []
    assert (done.state, done.counts.failed) == (batch_pb2.BATCH_STATE_COMPLETED, 3)
    assert [(each["error"]["code"], each["response"]) for each in errors] == [("invalid_argument", None)] * 3
