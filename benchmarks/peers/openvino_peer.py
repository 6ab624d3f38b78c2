"""OpenVINO GenAI as a contender: its continuous-batching pipeline, in processes of its own interpreter."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import READY_SECONDS, Answer, Asked, Models, ending

_WORKER = Path(__file__).resolve().parent / "openvino_worker.py"
_LINE_BYTES = 1 << 26


class OpenVino:
    """Two pipelines, of which one has the draft, each in a process of its own."""

    settings = (2, 3, 5)

    def __init__(self, plain: asyncio.subprocess.Process, drafting: asyncio.subprocess.Process) -> None:
        self._plain = plain
        self._drafting = drafting

    @classmethod
    @asynccontextmanager
    async def start(cls, python: Path, models: Models) -> "AsyncIterator[OpenVino]":
        """Runs while the block does."""
        async with (
            _worker(python, models.target) as plain,
            _worker(python, models.target, models.draft) as drafting,
        ):
            yield cls(plain, drafting)

    async def ask(self, asked: Asked, num_drafted: int) -> Answer:
        """See Contender. All prompts of a call have one seed: that is how OpenVINO takes them."""
        request = {"prompts": [list(prompt) for prompt in asked.prompts], "num_tokens": asked.num_tokens}
        request |= {"num_drafted": num_drafted, "temperature": asked.temperature, "seed": 1}
        said = await _exchange(self._drafting if num_drafted else self._plain, json.dumps(request))
        return Answer(said["token_ids"], said["seconds"])


@asynccontextmanager
async def _worker(python: Path, *models: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        python,
        _WORKER,
        *models,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    async with ending(process):
        async with asyncio.timeout(READY_SECONDS):
            await _exchange(process, None)
        yield process


async def _exchange(process: asyncio.subprocess.Process, line: str | None) -> dict[str, Any]:
    """The next line that a worker says, after it was told one."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the worker has no pipes")
    if line is not None:
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()
    said = await process.stdout.readline()
    if not said:
        raise RuntimeError("OpenVINO's worker has ended; its own output says why")
    found: dict[str, Any] = json.loads(said)
    return found
