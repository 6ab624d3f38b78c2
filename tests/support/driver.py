"""Runs sequences through an engine the plain way: one pick a step, no services."""

import os
from collections import abc

import numpy as np
from numpy.typing import NDArray

from services.common.sampling_params import SamplingParams
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.engine import Engine
from services.engine.sequence import Sequence
from services.engine.step_times import StepTimes

DEVICE = Device(os.environ.get("PACELINE_TEST_DEVICE", "cpu"))
"""Where the tests' models are computed."""
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class FlatStepTimes(StepTimes):
    """Every step takes a quarter of a second: rows cost nothing, and no choice depends on the machine."""

    def seconds(self, rows: int) -> float:
        return 0.25

    def curve(self, first: int, last: int) -> NDArray[np.float64]:
        return np.full(last - first + 1, 0.25)

    def observe(self, rows: int, seconds: float) -> None:
        pass


def make_engine(model: str, dtype: Dtype = Dtype.FLOAT32, **settings: object) -> Engine:
    """An engine with few blocks, whose steps all count as equally long."""
    engine = Engine(EngineConfig(model=model, device=DEVICE, dtype=dtype, **{"num_blocks": 256, **settings}))
    engine.step_times = FlatStepTimes()
    return engine


def add(engine: Engine, token_ids: abc.Sequence[int], params: SamplingParams = GREEDY, **more: object) -> Sequence:
    """A sequence taken in by the engine."""
    sequence = Sequence(token_ids, len(token_ids), params, **more)
    engine.add(sequence)
    return sequence


def append(sequence: Sequence, token_id: int) -> None:
    """Settles one more token."""
    sequence.token_ids.append(token_id)
    sequence.num_settled = len(sequence)
    sequence.first_logits = len(sequence) - 1


def generate(
    engine: Engine, prompts: abc.Sequence[abc.Sequence[int]], num_tokens: int, **more: object
) -> list[list[int]]:
    """Continues all prompts in one batch and returns what was produced; frees everything."""
    sequences = [add(engine, prompt, **more) for prompt in prompts]
    while engine.scheduler:
        for result in engine.step():
            sequence = result.sequence
            append(sequence, result.token_ids[-1])
            if len(sequence) == sequence.num_prompt_tokens + num_tokens:
                engine.remove(sequence)
    engine.check_integrity()
    assert engine.pool.num_used == 0
    return [s.token_ids[s.num_prompt_tokens :] for s in sequences]
