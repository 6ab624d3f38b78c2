"""llama.cpp as a contender: its server, over HTTP."""

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import READY_SECONDS, Answer, Asked, Models, ending
from services.local.ports import free_port

_POLL_SECONDS = 0.1
_CONTEXT_TOKENS = 32 * 512
"""Of all streams together."""


class LlamaServer:
    """Two servers, of which one has the draft; one, where there is none."""

    settings = (2, 3, 5)

    def __init__(self, plain: str, drafting: str, pool: ThreadPoolExecutor) -> None:
        self._plain = plain
        self._drafting = drafting
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def start(cls, binary: Path, models: Models, num_slots: int) -> "AsyncIterator[LlamaServer]":
        """Runs while the block does, and takes so many streams at once."""
        drafts = ("--spec-type", "draft-simple", "--model-draft", models.draft)
        with ThreadPoolExecutor(num_slots) as pool:
            async with AsyncExitStack() as servers:
                plain = drafting = await servers.enter_async_context(_server(binary, num_slots, models.target))
                if models.draft:
                    drafting = await servers.enter_async_context(_server(binary, num_slots, models.target, *drafts))
                yield cls(plain, drafting, pool)

    async def ask(self, asked: Asked, num_drafted: int) -> Answer:
        """See Contender."""
        loop = asyncio.get_running_loop()
        url = f"{self._drafting if num_drafted else self._plain}/completion"
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(self._pool, _post, url, _completion(asked, place, num_drafted))
                for place in range(len(asked.prompts))
            )
        )
        return Answer([answer["tokens"] for answer in answers], time.perf_counter() - started)


def _completion(asked: Asked, place: int, num_drafted: int) -> dict[str, Any]:
    return {
        "prompt": list(asked.prompts[place]),
        "n_predict": asked.num_tokens,
        "temperature": asked.temperature,
        "seed": place,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "samplers": ["temperature"],
        **({"speculative.n_max": num_drafted} if num_drafted else {}),
    }


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        found: dict[str, Any] = json.load(response)
    return found


@asynccontextmanager
async def _server(binary: Path, num_slots: int, target: str, *more: str) -> AsyncIterator[str]:
    port = free_port()
    threads = str(os.cpu_count() or 1)
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--model", target, "--port", str(port), "--parallel", str(num_slots), "--kv-unified"),
        *(
            "--ctx-size",
            str(_CONTEXT_TOKENS),
            "--threads",
            threads,
            "--no-ui",
            "--cache-ram",
            "0",
            "--log-verbosity",
            "0",
        ),
        *more,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    url = f"http://127.0.0.1:{port}"
    async with ending(process):
        async with asyncio.timeout(READY_SECONDS):
            while not await asyncio.to_thread(_is_healthy, f"{url}/health"):
                if process.returncode is not None:
                    raise RuntimeError(f"llama-server has ended with exit code {process.returncode}")
                await asyncio.sleep(_POLL_SECONDS)
        yield url


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return int(response.status) == 200
    except OSError:
        return False
