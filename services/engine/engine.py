"""The engine: schedule, run, hand over. Token ids in, token ids out."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from services.common.sampling_params import SamplingParams
from services.engine.adapter import AdapterError, Target, read_adapter
from services.engine.block_pool import NULL_BLOCK, BlockPool
from services.engine.config import EngineConfig
from services.engine.kv_cache import Buffer
from services.engine.lora import Lora
from services.engine.model import ModelDescription
from services.engine.model_runner import ModelRunner, Result
from services.engine.scheduler import Scheduler, Work
from services.engine.sequence import Sequence
from services.engine.step_times import ROWS, StepTimes

_WARM_UP_REPEATS = 2
_WARM_UP_ROWS = 64
_WARM_UP_SECONDS = 1.0


class Engine:
    """A model, its KV blocks and the sequences that use them. Used by one thread."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.runner = ModelRunner(config)
        self.pool = BlockPool(self.runner.kv_cache.num_blocks)
        self.scheduler = Scheduler(self.pool, config.block_size, config.max_step_tokens, config.max_sequences)
        self.num_steps = 0
        self.step_times = StepTimes()

    @property
    def description(self) -> ModelDescription:
        """The model that runs here."""
        return self.runner.loaded.description

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one sequence: what the model takes and what fits into all blocks."""
        return min(self.description.max_context_tokens, self.scheduler.max_sequence_tokens)

    @property
    def adapter_targets(self) -> dict[str, Target]:
        """Layers that adapters may change, by name; none where the engine takes no adapters."""
        return self.runner.loaded.targets if self.runner.lora is not None else {}

    def read_adapter(self, config: bytes, weights: bytes) -> Any:
        """An adapter as `install_adapter` takes it, from the files that PEFT wrote. Any thread may call it.

        Raises AdapterError or InvalidArgumentError when it does not fit.
        """
        adapter = read_adapter(config, weights, self.adapter_targets, self.config.max_adapter_rank)
        return self._lora.pack(adapter)

    def install_adapter(self, slot: int, packed: Any) -> None:
        """Puts an adapter into a slot that no sequence uses."""
        self._lora.install(slot, packed)

    @property
    def _lora(self) -> Lora:
        if self.runner.lora is None:
            raise AdapterError("this engine takes no adapters")
        return self.runner.lora

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in; it runs until it has no uncomputed tokens left."""
        self.scheduler.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go and frees its blocks."""
        self.scheduler.remove(sequence)

    def step(self) -> list[Result]:
        """Computes one flat batch of tokens. Empty when nothing is runnable or no row was wanted."""
        works, copies = self.scheduler.schedule(time.monotonic())
        if copies:
            self.runner.kv_cache.copy_blocks(copies)
        if not works:
            return []
        started = time.perf_counter()
        results = self.runner.run(works)
        self.scheduler.computed(works)
        self.num_steps += 1
        self.step_times.observe(sum(work.num_tokens for work in works), time.perf_counter() - started)
        return results

    @property
    def kv_identity(self) -> str:
        """What has to be the same for another engine's KV to be what this one would compute, bit by bit."""
        runner = self.runner
        forward = "fused" if runner.is_fused else "small" if runner.is_small else "own"
        place = runner.loaded.device.type
        if place == "cpu":
            place = torch.backends.cpu.get_cpu_capability()
        weights = self.description.dtype
        return f"{runner.kv_cache.layout}; {weights} weights; {forward} forward; {place}; torch {torch.__version__}"

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers."""
        return self.runner.kv_cache.block_bytes

    def adopt(self, blocks: Mapping[bytes, Buffer]) -> int:
        """Takes in blocks by digest that another engine computed, as far as there is room; returns how many."""
        taken: dict[int, Buffer] = {}
        for digest, content in blocks.items():
            if self.pool.find(digest) is not None:
                continue
            block = self.pool.allocate()
            if block is None:
                break
            self.pool.name(block, digest)
            taken[block] = content
        if taken:
            self.runner.kv_cache.write_blocks(list(taken), list(taken.values()))
            for block in taken:
                self.pool.release(block)
        return len(taken)

    def read(self, digests: Iterable[bytes]) -> dict[bytes, memoryview]:
        """Contents of those of the blocks that are here."""
        found = {digest: block for digest in digests if (block := self.pool.find(digest)) is not None}
        if not found:
            return {}
        return dict(zip(found, self.runner.kv_cache.read_blocks(list(found.values())), strict=True))

    def warm_up(self) -> None:
        """Measures steps of growing size for some time, so that their times are known from the first request on."""
        measured: dict[int, float] = {}
        give_up = time.perf_counter() + _WARM_UP_SECONDS
        for rows in ROWS:
            if rows > min(_WARM_UP_ROWS, self.config.max_step_tokens) or time.perf_counter() > give_up:
                break
            works = [Work(_dummy(), 0, 1) for _ in range(rows)]
            seconds = []
            for _ in range(_WARM_UP_REPEATS):
                started = time.perf_counter()
                self.runner.run(works)
                seconds.append(time.perf_counter() - started)
            measured[rows] = min(seconds)
        self.step_times = StepTimes(measured)

    def check_integrity(self) -> None:
        """Raises RuntimeError when blocks were lost or are counted twice."""
        self.scheduler.check_integrity()


def _dummy() -> Sequence:
    """A sequence of one token that lies in the null block."""
    sequence = Sequence([0], 1, SamplingParams(temperature=0.0))
    sequence.block_table = [NULL_BLOCK]
    return sequence
