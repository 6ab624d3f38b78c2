"""The engine: schedule, run, hand over. Token ids in, token ids out."""

import time

from services.engine.block_pool import BlockPool
from services.engine.config import EngineConfig
from services.engine.model import ModelDescription
from services.engine.model_runner import ModelRunner, Result
from services.engine.scheduler import Scheduler
from services.engine.sequence import Sequence

_DECODE_ROWS = 64
"""Steps of up to this many rows count for `step_seconds`: beyond it a step's time is that of its prompts."""


class Engine:
    """A model, its KV blocks and the sequences that use them. Used by one thread."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.runner = ModelRunner(config)
        self.pool = BlockPool(self.runner.kv_cache.num_blocks)
        self.scheduler = Scheduler(self.pool, config.block_size, config.max_step_tokens, config.max_sequences)
        self.num_steps = 0
        self.step_seconds = 0.0
        """Smoothed time of a step that picked tokens."""

    @property
    def description(self) -> ModelDescription:
        """The model that runs here."""
        return self.runner.loaded.description

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one sequence: what the model takes and what fits into all blocks."""
        return min(self.description.max_context_tokens, self.scheduler.max_sequence_tokens)

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in; it runs until it has no uncomputed tokens left."""
        self.scheduler.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go and frees its blocks."""
        self.scheduler.remove(sequence)

    def step(self) -> list[Result]:
        """Computes one flat batch of tokens. Empty when nothing is runnable or no row was wanted."""
        works = self.scheduler.schedule(time.monotonic())
        if not works:
            return []
        started = time.perf_counter()
        results = self.runner.run(works)
        self.scheduler.computed(works)
        self.num_steps += 1
        seconds = time.perf_counter() - started
        if results and sum(work.num_tokens for work in works) <= _DECODE_ROWS:
            self.step_seconds += (seconds - self.step_seconds) * (0.1 if self.step_seconds else 1.0)
        return results

    def check_integrity(self) -> None:
        """Raises RuntimeError when blocks were lost or are counted twice."""
        self.scheduler.check_integrity()
