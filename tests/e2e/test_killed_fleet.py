"""Each process of a fleet is killed, hung or told to stop in turn, at random moments, while streams run.

No stream fails; no token, text or logprob differs from an undisturbed run; nothing is delivered twice; blocks and
memory return to where they were. PACELINE_ROUNDS makes it longer, PACELINE_SEED another one.
"""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from support.fleet import NUM_TOKENS, REQUESTS, Fleet, fleet_of, keep_asking, streamed
from support.lora import PEFT_WARNING, save_adapters
from support.tls import make_certificates

NUM_ROUNDS = int(os.environ.get("PACELINE_ROUNDS", "10"))
SEED = int(os.environ.get("PACELINE_SEED", "1"))
GRACES = (0.3, 5.0)
MORE_MEMORY = 1.25
"""Of what a process of the same kind had before."""
MORE_REQUESTS: list[dict[str, Any]] = [
    {"prompt": "x = [", "temperature": 1.0, "seed": 5, "stop": ["\n\n\n", "zz"], "logprobs": 1},
    {"prompt": "def f(" * 30, "temperature": 0.6, "seed": 6, "n": 2, "adapter": "a0"},
]
pytestmark = [pytest.mark.timeout(240 + 20 * NUM_ROUNDS), pytest.mark.filterwarnings(PEFT_WARNING)]


class Havoc:
    """What befalls a fleet."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self._names = list(fleet.ports)
        self._coming: dict[str, asyncio.Task[None]] = {}
        """What comes back."""

    async def strike(self, number: int) -> None:
        """Takes the next process away; it comes back by itself. The other of its kind is there meanwhile."""
        name = self._names[(number * 3) % len(self._names)]
        for each in (name, f"{name[:-1]}{3 - int(name[-1])}"):
            if each in self._coming:
                await self._coming.pop(each)
        await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        how = self._chance.choice([self._killed, self._hung, self._stopped])
        self._coming[name] = asyncio.create_task(how(name))

    async def calm(self) -> None:
        """Returns when all are back."""
        await asyncio.gather(*self._coming.values())

    async def _killed(self, name: str) -> None:
        await self._fleet.kill(name)
        await self._start(name)

    async def _stopped(self, name: str) -> None:
        await self._fleet.drain(name)
        await self._start(name)

    async def _hung(self, name: str) -> None:
        self._fleet.pause(name)
        await asyncio.sleep(self._chance.uniform(0.5, 3.0))
        self._fleet.go_on(name)

    async def _start(self, name: str) -> None:
        await self._fleet.start(name, self._chance.choice(GRACES))


async def test_nothing_is_lost_whatever_dies(target_folder: str, draft_folder: str, tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    (tmp_path / "saved").mkdir()
    adapter = save_adapters(target_folder, tmp_path / "saved")[0]
    requests = [*REQUESTS, *MORE_REQUESTS]
    async with fleet_of(folder, target_folder, draft_folder, tmp_path, GRACES) as fleet, fleet.client() as client:
        await client.upload_adapter(adapter, "a0", ignore_base_model=True)
        expected = [await streamed(client, **request) for request in requests]
        assert all(len(ids) == NUM_TOKENS for reply in expected[: len(REQUESTS)] for ids, _, _ in reply.values())
        before = largest(fleet)
        is_over, havoc = asyncio.Event(), Havoc(fleet, random.Random(SEED))
        streams = [
            asyncio.create_task(keep_asking(client, request, reply, is_over))
            for request, reply in zip(requests, expected, strict=True)
        ]
        try:
            for number in range(NUM_ROUNDS):
                await havoc.strike(number)
                for stream in streams:
                    if stream.done():
                        await stream
            await havoc.calm()
        finally:
            is_over.set()
            counts = await asyncio.gather(*streams)
        assert all(counts)
        await fleet.idle()
        grown = {kind: size / before[kind] for kind, size in largest(fleet).items()}
        assert max(grown.values()) <= MORE_MEMORY, grown


def largest(fleet: Fleet) -> dict[str, int]:
    """Bytes of the largest process of each kind."""
    found: dict[str, int] = {}
    for name in fleet.ports:
        kind = name.split(maxsplit=1)[0]
        found[kind] = max(found.get(kind, 0), fleet.memory(name))
    return found
