"""What is compared: systems that continue prompts with a pair of models, of which Paceline is one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from paceline import Client
from paceline.cli.bench.load import run_streams
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

PACELINE = "Paceline"
READY_SECONDS = 120.0
"""A contender that takes longer to start than this has failed."""


class Asked(NamedTuple):
    """What all contenders are asked for."""

    prompts: Sequence[Sequence[int]]
    num_tokens: int
    temperature: float = 0.0


class Answer(NamedTuple):
    """What one gave."""

    token_ids: list[list[int]]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Over all streams, prompts included."""
        return sum(map(len, self.token_ids)) / self.seconds


class Contender(Protocol):
    """One system with a pair of models."""

    @property
    def settings(self) -> Sequence[int]:
        """How many tokens a round may be drafted; its best is looked for. A single one: it chooses by itself."""

    async def ask(self, asked: Asked, num_drafted: int) -> Answer:
        """Continues all prompts at once; 0 drafted tokens are no speculation. A prompt's seed is its place."""


class Models(NamedTuple):
    """Folders or files of a pair, as one contender takes them."""

    target: str
    draft: str = ""
    """Empty for none."""


class Paceline:
    """Through the gateway, with nothing set but the weights."""

    settings = (1,)

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def start(cls, models: Models, weights: str, draft_weights: str) -> "AsyncIterator[Paceline]":
        """Runs while the block does."""
        pair = Pair(id="pair", model=models.target, draft=models.draft or None)
        overrides: dict[str, dict[str, Any]] = {
            "verifier": {"suffix_drafting": False, "verdict_file": "", "engine": {"weights": weights}},
            "draft": {"engine": {"weights": draft_weights}},
        }
        async with (
            running(SystemSettings((pair,), log_level="WARNING", overrides=overrides)) as launcher,
            Client(launcher.address()) as client,
        ):
            yield cls(client)

    async def ask(self, asked: Asked, num_drafted: int) -> Answer:
        """See Contender."""
        run = await run_streams(
            self._client,
            asked.prompts,
            {
                "max_tokens": asked.num_tokens,
                "temperature": asked.temperature,
                "ignore_eos": True,
                "speculation": num_drafted > 0,
            },
        )
        return Answer([stream.token_ids for stream in run.streams], run.seconds)


@asynccontextmanager
async def ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Ends a process with the block."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
