"""A draft is told what was decided before whoever reads the text is: the verifier waits for it."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gateway.generation.backlog import Backlog
from gateway.generation.drafting import Drafting
from paceline.internal.v1 import speculation_pb2
from services.draft.client import ProposeStream


class Call:
    """A call that takes as long for a write as a network may."""

    def __init__(self) -> None:
        self.begun: list[Any] = []

    def add_done_callback(self, _: Callable[[object], None]) -> None:
        """It never ends."""

    async def write(self, request: Any) -> None:
        """Notes that it began."""
        self.begun.append(request)
        await asyncio.sleep(60)


async def test_the_message_is_on_its_way_when_commit_returns() -> None:
    call, backlog = Call(), Backlog()
    model: Any = SimpleNamespace(drafts=[object()])
    transcript: Any = SimpleNamespace(opening=SimpleNamespace(max_draft_tokens=4))
    drafting = Drafting(model, transcript, lambda: "")
    drafting._backlog = backlog
    drafting._task = asyncio.create_task(Drafting._write(ProposeStream(call), backlog))
    await asyncio.sleep(0)
    try:
        await drafting.commit(speculation_pb2.Commit(token_ids=[5], num_wanted=0))
        assert not call.begun
        await drafting.commit(speculation_pb2.Commit(token_ids=[6, 7], num_wanted=3))
        (request,) = call.begun
        assert list(request.commit.token_ids) == [5, 6, 7]
    finally:
        drafting._task.cancel()
