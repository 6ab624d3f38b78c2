"""The engine: schedule, run, hand over. Token ids in, token ids out."""

import time
from collections import abc
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.common.sampling_params import SamplingParams
from services.engine.adapter import AdapterError, Packer, Target
from services.engine.block_pool import NULL_BLOCK, BlockPool
from services.engine.config import EngineConfig
from services.engine.errors import BrokenEngineError, Failure, InterruptedStepError
from services.engine.halving import run_by_halves
from services.engine.kv_cache import Buffer
from services.engine.loading import Phase, Progress, Report, unreported
from services.engine.model import ModelDescription
from services.engine.model_runner import ModelRunner, Result
from services.engine.outbox import NO_BELL
from services.engine.readings import Reading, Readings
from services.engine.sampler import BROKEN, NonFiniteLogitsError
from services.engine.scheduler import Scheduler, Work
from services.engine.sequence import NO_SLOT, Sequence
from services.engine.step_times import ROWS, StepTimes

_WARM_UP_REPEATS = 2
_WARM_UP_ROWS = 64
_WARM_UP_SECONDS = 1.0
_PROBES = 8
_NOT_FINITE = "the model's numbers for this text are not finite"
_SHOWN_ROWS = tuple(rows for rows in ROWS if rows <= 256)
"""The expected time of a step is read at these numbers of rows."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What never changes of a running engine. Any thread may read it."""

    description: ModelDescription
    max_context_tokens: int
    """Most tokens of one sequence: what the model takes and what fits into all blocks."""
    max_step_tokens: int
    block_size: int
    """Tokens of one KV block."""
    block_bytes: int
    """Bytes of one KV block over all layers."""
    kv_identity: str
    """What has to be the same for another engine's KV to be what this one would compute, bit by bit."""
    targets: abc.Mapping[str, Target]
    """Targets are the layers that adapters may change, by name; there are none where the engine takes no adapters."""
    max_adapter_rank: int
    packer: Packer | None
    """What lays adapters out for `install_adapter`; None where the engine takes none."""
    max_kv_tokens: int = 0
    """Tokens that fit into all KV blocks together."""


class Engine:
    """A model, its KV blocks and the sequences that use them. Used by one thread."""

    def __init__(self, config: EngineConfig, report: Report = unreported) -> None:
        """Loads the model, and reports how far that is."""
        self.config = config
        self.runner = ModelRunner(config, report)
        self.pool = BlockPool(self.runner.kv_cache.num_blocks)
        self.scheduler = Scheduler(
            self.pool, config.block_size, config.max_step_tokens, config.max_sequences, self._spare_rows
        )
        self.num_steps = 0
        self.step_times = StepTimes()
        self.facts = self._facts()
        self._failures: list[Failure] = []

    def install_adapter(self, slot: int, packed: Any) -> None:
        """Puts an adapter that the facts' packer laid out into a slot that no sequence uses."""
        if self.runner.forward.adapters is None:
            raise AdapterError("this engine takes no adapters")
        self.runner.forward.adapters.install(slot, packed)

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in; it runs until it has no uncomputed tokens left."""
        self.scheduler.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go and frees its blocks."""
        self.scheduler.remove(sequence)

    def step(self, bell: int = NO_BELL) -> list[Result]:
        """Computes one flat batch of tokens. Empty when nothing is runnable or no row was wanted.

        `bell` is rung once computing has begun, see Outbox.

        What cannot be computed is among `failures` afterwards. Raises BrokenEngineError when that says something of the
        engine, or what it holds no longer agrees.
        """
        works, copies = self.scheduler.schedule(time.monotonic())
        if copies:
            self.runner.kv_cache.copy_blocks(copies)
        if not works:
            return []
        started = time.perf_counter()
        try:
            results, failures = run_by_halves(partial(self.runner.run, bell=bell), works)
        except InterruptedStepError:
            self.num_steps += 1
            return []
        seconds = time.perf_counter() - started
        self.scheduler.computed(works)
        self.num_steps += 1
        if failures or any(BROKEN in result.token_ids for result in results):
            return self._without_failed([_before_broken(result) for result in results], failures)
        self.step_times.observe(sum(work.num_tokens for work in works), seconds)
        return results

    def hurry(self, wanted: bool) -> None:
        """Says whether something has come that cannot wait: a step in the background is given up. Any thread may."""
        self.runner.forward.hurry(wanted)

    def take_failures(self) -> list[Failure]:
        """The sequences that could not be computed since this was asked last. Each has to be removed."""
        failures, self._failures = self._failures, []
        return failures

    def adopt(self, blocks: abc.Mapping[bytes, Buffer]) -> int:
        """Takes in blocks by digest that another engine computed, as far as there is room; returns how many."""
        taken: dict[int, bytes] = {}
        try:
            for digest in blocks:
                if self.pool.find(digest) is not None:
                    continue
                block = self.pool.allocate()
                if block is None:
                    break
                taken[block] = digest
            if taken:
                self.runner.kv_cache.write_blocks(list(taken), [blocks[digest] for digest in taken.values()])
            for block, digest in taken.items():
                self.pool.register(block, digest)
        finally:
            for block in taken:
                self.pool.release(block)
        return len(taken)

    def read(self, digests: abc.Iterable[bytes]) -> dict[bytes, memoryview]:
        """Contents of those of the blocks that are here."""
        found = {digest: block for digest in digests if (block := self.pool.find(digest)) is not None}
        if not found:
            return {}
        return dict(zip(found, self.runner.kv_cache.read_blocks(list(found.values())), strict=True))

    def count_leading(self, digests: abc.Sequence[bytes]) -> int:
        """How many of these blocks are here, from the first on."""
        return next((at for at, digest in enumerate(digests) if self.pool.find(digest) is None), len(digests))

    @property
    def prompt_seconds(self) -> float:
        """Expected time of computing one token of a long prompt."""
        return self.step_times.seconds(self.config.max_step_tokens) / self.config.max_step_tokens

    def warm_up(self, report: Report = unreported) -> None:
        """Measures steps of growing size for some time, so that their times are known from the first request on.

        Raises BrokenEngineError for a model whose numbers are never finite.
        """
        self._check_model()
        measured: dict[int, float] = {}
        give_up = time.perf_counter() + _WARM_UP_SECONDS
        sizes = [rows for rows in ROWS if rows <= min(_WARM_UP_ROWS, self.config.max_step_tokens)]
        for at, rows in enumerate(sizes):
            report(Progress(Phase.MEASURING, at / len(sizes)))
            if time.perf_counter() > give_up:
                break
            works = [Work(_dummy(), 0, 1) for _ in range(rows)]
            seconds = []
            for _ in range(_WARM_UP_REPEATS):
                started = time.perf_counter()
                self.runner.run(works)
                seconds.append(time.perf_counter() - started)
            measured[rows] = min(seconds)
        self.step_times = StepTimes(measured)

    def readings(self) -> Readings:
        """What the engine counts and measures, as it stands now."""
        return {
            "kv_blocks": (
                Reading(self.pool.num_used, {"state": "used"}),
                Reading(self.pool.num_available, {"state": "available"}),
            ),
            "step_seconds": tuple(Reading(self.step_times.seconds(rows), {"rows": rows}) for rows in _SHOWN_ROWS),
            "preemptions": (Reading(self.scheduler.num_preemptions),),
            "steps": (Reading(self.num_steps),),
            "adapter_uses": tuple(
                Reading(count, {"slot": slot, "state": state})
                for (slot, state), count in self.scheduler.adapter_uses().items()
            ),
        }

    def check_integrity(self) -> None:
        """Raises RuntimeError when blocks were lost or are counted twice."""
        self.scheduler.check_integrity()

    def _without_failed(self, results: list[Result], failures: list[Failure]) -> list[Result]:
        """The results that are some, once what failed was looked at: the engine must still be as it was."""
        broken = [result.sequence for result in results if BROKEN in result.token_ids]
        failures.extend(Failure(sequence, NonFiniteLogitsError(_NOT_FINITE)) for sequence in broken)
        if any(sequence.adapter_slot == NO_SLOT for sequence in broken):
            self._check_model()
        for failure in failures:
            self.scheduler.forget(failure.sequence)
        try:
            self.check_integrity()
        except RuntimeError as error:
            raise BrokenEngineError(f"after a step that failed: {error}") from error
        self._failures.extend(failures)
        return [result for result in results if BROKEN not in result.token_ids]

    def _check_model(self) -> None:
        """Raises BrokenEngineError when the model's numbers are finite for none of some tokens, each alone."""
        works = [Work(_dummy(token_id), 0, 1) for token_id in range(min(_PROBES, self.facts.description.vocab_size))]
        if all(BROKEN in result.token_ids for result in self.runner.run(works)):
            raise BrokenEngineError("the model's numbers are not finite, whatever it is asked")

    def _spare_rows(self, rows: int) -> int:
        return self.step_times.spare_rows(rows, self.config.max_step_tokens - rows)

    def _facts(self) -> EngineFacts:
        loaded, kv_cache, forward = self.runner.loaded, self.runner.kv_cache, self.runner.forward
        return EngineFacts(
            description=loaded.description,
            max_context_tokens=min(loaded.description.max_context_tokens, self.scheduler.max_sequence_tokens),
            max_step_tokens=self.config.max_step_tokens,
            block_size=self.config.block_size,
            block_bytes=kv_cache.block_bytes,
            kv_identity=f"{kv_cache.layout}; {forward.identity}",
            targets={} if forward.adapters is None else loaded.targets,
            max_adapter_rank=self.config.max_adapter_rank,
            packer=None if forward.adapters is None else forward.adapters.packer,
            max_kv_tokens=self.scheduler.max_sequence_tokens,
        )


def _dummy(token_id: int = 0) -> Sequence:
    """A sequence of one token that lies in the null block."""
    sequence = Sequence([token_id], 1, SamplingParams(temperature=0.0))
    sequence.block_table = [NULL_BLOCK]
    return sequence


def _before_broken(result: Result) -> Result:
    """The picks behind settled tokens and those proposed tokens that left numbers finite: a proposal that does not is
    none, and ends no text.
    """
    if BROKEN not in result.token_ids:
        return result
    at = result.token_ids.index(BROKEN)
    if not at or result.first + at <= result.sequence.num_settled:
        return result
    sequence, first, token_ids, logprobs, runners_up = result
    return Result(sequence, first, token_ids[:at], logprobs[:at], runners_up[:at])
