"""`python -m support.fake_process verifier|draft PORT`: a scripted service in a process of its own, to be killed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from support.fakes import FakeDraft, FakeVerifier, serve_fakes

_TOKEN_SECONDS = 0.03


class Slow(FakeVerifier):
    """Takes a while for each token."""

    async def _commits(self, opening: Any, context: Any) -> AsyncIterator[Any]:
        async for response in super()._commits(opening, context):
            await asyncio.sleep(_TOKEN_SECONDS)
            yield response


async def _serve(kind: str, port: int) -> None:
    async with serve_fakes(Slow(piece=1) if kind == "verifier" else FakeDraft(), port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
