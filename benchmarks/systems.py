"""What is measured: Paceline through its gateway, its engine in process, and transformers. All greedy, same prompts."""

import asyncio
import statistics
import time
from collections import abc
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from paceline import Client
from services.common.sampling_params import SamplingParams
from services.engine.config import EngineConfig
from services.engine.engine import Engine
from services.engine.sequence import Sequence


class Measured(NamedTuple):
    """One timed piece of work: all prompts continued at once."""

    tokens_per_second: float
    """Over all streams, prompt processing included."""
    token_ids: list[list[int]]
    first_seconds: list[float]
    gaps_seconds: list[float]
    """Time per token between deliveries; a delivery of several tokens counts as that many equal gaps."""
    num_drafted: int
    num_accepted: int
    num_rounds: int = 0
    num_ready_rounds: int = 0


def quartiles_of_pairs(some: abc.Sequence[Measured], others: abc.Sequence[Measured]) -> list[float]:
    """Of ratios of tokens a second over runs that were taken one after the other, of the same prompts; the second is
    their median.
    """
    pairs = zip(some, others, strict=True)
    return statistics.quantiles(one.tokens_per_second / other.tokens_per_second for one, other in pairs)


def num_different(some: abc.Sequence[Measured], others: abc.Sequence[Measured]) -> int:
    """Streams of runs of the same prompts whose tokens were others."""
    pairs = zip(some, others, strict=True)
    return sum(a != b for one, other in pairs for a, b in zip(one.token_ids, other.token_ids, strict=True))


async def through_gateway(
    client: Client,
    prompts: abc.Sequence[abc.Sequence[int]],
    num_tokens: int,
    *,
    speculation: bool,
    adapters: abc.Sequence[str] = (),
) -> Measured:
    """Continues all prompts at once through gateway and gRPC; `adapters` has a name for each, or is empty."""
    started = time.perf_counter()
    streams = [
        asyncio.create_task(_stream(client, prompt, num_tokens, speculation, adapter))
        for prompt, adapter in zip(prompts, adapters or [""] * len(prompts), strict=True)
    ]
    results = await asyncio.gather(*streams)
    seconds = time.perf_counter() - started
    return Measured(
        len(prompts) * num_tokens / seconds,
        [r[0] for r in results],
        [r[1] for r in results],
        [gap for r in results for gap in r[2]],
        sum(r[3].num_drafted_tokens for r in results),
        sum(r[3].num_accepted_tokens for r in results),
        sum(r[3].num_rounds for r in results),
        sum(r[3].num_ready_rounds for r in results),
    )


async def _stream(
    client: Client, prompt: abc.Sequence[int], num_tokens: int, speculation: bool, adapter: str
) -> tuple[list[int], float, list[float], Any]:
    token_ids: list[int] = []
    gaps: list[float] = []
    started = last = time.perf_counter()
    first, usage = 0.0, None
    events = client.generate(
        prompt, adapter=adapter, max_tokens=num_tokens, temperature=0, ignore_eos=True, speculation=speculation
    )
    async for event in events:
        count = len(event.delta.token_ids)
        now = time.perf_counter()
        if count:
            if token_ids:
                gaps.extend([(now - last) / count] * count)
            else:
                first = now - started
            last = now
            token_ids.extend(event.delta.token_ids)
        if event.HasField("usage"):
            usage = event.usage
    return token_ids, first, gaps, usage


class InProcess:
    """The engine with nothing around it."""

    def __init__(self, config: EngineConfig) -> None:
        self._engine = Engine(config)

    def generate(self, prompts: abc.Sequence[abc.Sequence[int]], num_tokens: int, temperature: float = 0.0) -> Measured:
        """Continues all prompts at once, one pick a step. A prompt's seed is its index."""
        engine = self._engine
        sequences = []
        for seed, prompt in enumerate(prompts):
            params = SamplingParams(temperature=temperature, seed=seed, ignore_eos=True)
            sequences.append(Sequence(prompt, len(prompt), params))
        started = time.perf_counter()
        for sequence in sequences:
            engine.add(sequence)
        while engine.scheduler:
            for result in engine.step():
                sequence = result.sequence
                sequence.token_ids.append(result.token_ids[-1])
                sequence.num_settled = len(sequence)
                sequence.first_logits = len(sequence) - 1
                if len(sequence) == sequence.num_prompt_tokens + num_tokens:
                    engine.remove(sequence)
        seconds = time.perf_counter() - started
        tokens = [s.token_ids[s.num_prompt_tokens :] for s in sequences]
        return Measured(len(prompts) * num_tokens / seconds, tokens, [], [], 0, 0)


class Transformers:
    """`transformers.generate`, with its default cache and attention."""

    def __init__(self, model: str, dtype: torch.dtype, assistant: str | None = None) -> None:
        self._model = _load(model, dtype)
        self._assistant = _load(assistant, dtype) if assistant else None

    def generate(
        self, prompts: abc.Sequence[abc.Sequence[int]], num_tokens: int, *, assisted: bool = False
    ) -> Measured:
        """Continues all prompts, of equal length, as one batch."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        more = {"assistant_model": self._assistant} if assisted else {}
        started = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            )
        seconds = time.perf_counter() - started
        return Measured(len(prompts) * num_tokens / seconds, out[:, ids.shape[1] :].tolist(), [], [], 0, 0)


def _load(model: str, dtype: torch.dtype) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    loaded.train(False)
    loaded.generation_config.eos_token_id = None
    return loaded


def median(runs: abc.Sequence[Measured]) -> float:
    """Median tokens per second."""
    return statistics.median(run.tokens_per_second for run in runs)
