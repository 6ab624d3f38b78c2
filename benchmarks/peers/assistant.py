"""The assistant beside llama.cpp, which multiplies with the 4 bits of its file as they are; neither speculates."""

import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from benchmarks.page import WORK_DIR
from benchmarks.peers.contenders import PACELINE, Answer, Asked, Contender, Models, Paceline
from benchmarks.peers.llama_server import LlamaServer
from models.assistant.target import NAME, target_folder
from services.local.model_files import gguf_of

SERVER = WORK_DIR.parent / "peers" / "llama" / "build" / "bin" / "llama-server"
"""Where `make bench-peers` puts it."""
LLAMA = "llama.cpp, Q4_1"
_OURS = f"{PACELINE}, bfloat16"
"""The model does not bear 8 bits here: rows of integers have no room for its largest numbers and the others."""


class Plain(NamedTuple):
    """One stream without speculation."""

    name: str
    tokens_per_second: float
    relative: float
    """To llama.cpp: the median over prompts."""


async def beside_llama(prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Plain]:
    """Each system on each prompt, in turns; the first prompt is to warm up. Empty where llama.cpp is not installed."""
    file = gguf_of(NAME)
    if file is None or not SERVER.is_file():
        return []
    async with AsyncExitStack() as resources:
        folder = str(target_folder())
        contenders: dict[str, Contender] = {}
        ours = Paceline.start(Models(folder), "dtype", "int8")
        contenders[_OURS] = await resources.enter_async_context(ours)
        contenders[LLAMA] = await resources.enter_async_context(LlamaServer.start(SERVER, Models(str(file)), 1))
        runs: dict[str, list[Answer]] = {name: [] for name in contenders}
        for number, prompt in enumerate(prompts):
            for name, contender in contenders.items():
                answer = await contender.ask(Asked([prompt], num_tokens), 0)
                runs[name] += [answer] if number else []
    return [
        Plain(
            name,
            statistics.median(run.tokens_per_second for run in mine),
            statistics.median(
                ours.tokens_per_second / theirs.tokens_per_second
                for ours, theirs in zip(mine, runs[LLAMA], strict=True)
            ),
        )
        for name, mine in runs.items()
    ]
