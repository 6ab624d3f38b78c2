"""How long streams stand still when their verifier is stopped (SIGSTOP) and there is another one."""

import asyncio
import time
from typing import Any

from benchmarks.two_verifiers import FIRST, two_verifiers
from paceline import Client
from services.local.pair import Pair

NUM_STREAMS = 8
_NUM_TOKENS = 1_500
_BEFORE_TOKENS = 20
"""Tokens that every stream has when the verifier is stopped."""
_LEAST_SECONDS = 0.5
"""No verifier is given up sooner; a step takes far less."""


class _Stream:
    """One text, and how long it stood still."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.longest_gap = 0.0
        self.has_begun = asyncio.Event()

    async def read(self, client: Client, seed: int) -> None:
        """Reads to the end."""
        last = time.monotonic()
        async for event in client.generate("import ", seed=seed, max_tokens=_NUM_TOKENS, ignore_eos=True):
            now = time.monotonic()
            if self.has_begun.is_set():
                self.longest_gap = max(self.longest_gap, now - last)
            last = now
            self.num_tokens += len(event.delta.token_ids)
            if self.num_tokens >= _BEFORE_TOKENS:
                self.has_begun.set()


async def seconds_until_elsewhere(model: str) -> float:
    """The longest that one of several streams stood still, each of which was read to its end.

    Raises RuntimeError when one lost tokens or none stood still.
    """
    async with two_verifiers(Pair(model=model, threads=1), prefix_cache=False) as verifiers:
        streams = [_Stream() for _ in range(NUM_STREAMS)]
        reading = [asyncio.create_task(stream.read(verifiers.client, seed)) for seed, stream in enumerate(streams)]
        begun = asyncio.gather(*(stream.has_begun.wait() for stream in streams))
        either: list[asyncio.Future[Any]] = [begun, *reading]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        verifiers.pause(FIRST)
        try:
            await asyncio.gather(*reading)
        finally:
            verifiers.go_on(FIRST)
        if any(stream.num_tokens != _NUM_TOKENS for stream in streams):
            raise RuntimeError("a stream lost tokens")
        longest = max(stream.longest_gap for stream in streams)
        if longest < _LEAST_SECONDS:
            raise RuntimeError("no stream was at the verifier that was stopped")
        return longest
