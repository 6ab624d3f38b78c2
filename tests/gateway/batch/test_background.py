"""Batches run in the background: they take nothing that interactive requests wait for."""

from services.common.background import BACKGROUND_PRIORITY
from support.batch import Stalls, expected, jsonl, line, read, texts, until_ended
from support.fakes import serve_fakes
from support.system import StartGateway


class StallsBatches(Stalls):
    """Has only the background wait."""

    async def _commits(self, opening, context):  # type: ignore[no-untyped-def]
        source = super() if opening.priority == BACKGROUND_PRIORITY else super(Stalls, self)
        async for response in source._commits(opening, context):
            yield response


async def test_items_that_run_take_no_place_of_others(start_gateway: StartGateway) -> None:
    verifier = StallsBatches()
    async with serve_fakes(verifier) as address, start_gateway([address], max_active_requests=1) as system:
        names = "abcdefgh"
        made = await system.client.create_batch(jsonl(*map(line, names)))
        while verifier.num_open < len(names):
            await verifier.opened.wait()
            verifier.opened.clear()
        reply = await system.generate("abc", max_tokens=6)
        assert reply.text == expected("abc")
        verifier.go_on.set()
        await until_ended(system.client, made.batch.id)
        assert texts(await read(system.client, made.batch.id)) == {name: expected(name) for name in names}
    assert {opening.priority for opening in verifier.opens} == {0, BACKGROUND_PRIORITY}
