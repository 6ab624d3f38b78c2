"""Every service is stopped and started again under load: nothing is lost, and no token differs.

Real processes with real signals, two of each, all over mutual TLS; the first of all services at once, then the second,
as a release does it. One of the two has so little grace that streams move, the other so much that they finish.
PACELINE_ROLLS makes it longer.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.fleet import NUM_TOKENS, REQUESTS, Fleet, fleet_of, keep_asking, streamed
from support.lora import PEFT_WARNING, save_adapters
from support.tls import make_certificates

NUM_ROLLS = int(os.environ.get("PACELINE_ROLLS", "1"))
GRACES = (20.0, 0.3)
"""Seconds that running streams may take to finish: more than any takes, and less."""
pytestmark = [pytest.mark.timeout(180 + 240 * NUM_ROLLS), pytest.mark.filterwarnings(PEFT_WARNING)]


async def test_a_rolling_restart_loses_nothing_and_changes_no_token(
    target_folder: str, draft_folder: str, tmp_path: Path
) -> None:
    folder = make_certificates(tmp_path / "certificates")
    (tmp_path / "saved").mkdir()
    adapter = save_adapters(target_folder, tmp_path / "saved")[0]
    async with fleet_of(folder, target_folder, draft_folder, tmp_path, GRACES) as fleet, fleet.client() as client:
        await client.upload_adapter(adapter, "a0", ignore_base_model=True)
        expected = [await streamed(client, **request) for request in REQUESTS]
        assert all(len(ids) == NUM_TOKENS for reply in expected for ids, _, _ in reply.values())
        is_over = asyncio.Event()
        streams = [
            asyncio.create_task(keep_asking(client, request, reply, is_over))
            for request, reply in zip(REQUESTS, expected, strict=True)
        ]
        try:
            for number in range(1, NUM_ROLLS + 1):
                await _roll(fleet, streams, number)
        finally:
            is_over.set()
            counts = await asyncio.gather(*streams)
    assert all(counts)


async def _roll(fleet: Fleet, streams: Sequence["asyncio.Task[int]"], roll: int) -> None:
    """Restarts everything once; who had little grace comes back with more, and the other way round."""

    async def again(name: str, grace_seconds: float) -> None:
        await fleet.drain(name)
        await fleet.start(name, grace_seconds)

    for number in range(2):
        async with asyncio.TaskGroup() as together:
            for name in list(fleet.ports)[number::2]:
                together.create_task(again(name, grace_of(number + roll)))
        for stream in streams:
            if stream.done():
                await stream


def grace_of(number: int) -> float:
    return GRACES[number % 2]
