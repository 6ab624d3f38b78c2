"""On a GPU a step is computed in passes of one size: every row once, in order, and the same as in one."""

import random
from typing import Any

import pytest
import torch

from services.engine.engine import Engine
from services.engine.forward import Batch
from services.engine.sampler import NonFiniteLogitsError
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from services.engine.torch_forward.forward import TorchForward, in_passes
from support.driver import GREEDY, add, generate, make_engine
from support.tiny import save_tiny


def batch_of(*counts: int) -> Batch:
    """Works of so many tokens, of which every third row is wanted; a token's id says which row it is in."""
    sequences = [Sequence(list(range(100)), 100, GREEDY) for _ in counts]
    works = [
        Work(sequence, 7 * number, count)
        for number, (sequence, count) in enumerate(zip(sequences, counts, strict=True))
    ]
    positions = [at for work in works for at in range(work.start, work.start + work.num_tokens)]
    rows = list(range(sum(counts)))
    return Batch(works, rows, positions, rows[::3])


@pytest.mark.parametrize("counts", [(1,), (8,), (9,), (3, 20, 1, 1), (8, 8), (16, 1, 40), (1,) * 30])
def test_every_row_is_in_one_pass_with_what_belongs_to_it(counts: tuple[int, ...]) -> None:
    batch = batch_of(*counts)
    passes = list(in_passes(batch, 8))
    assert [row for each in passes for row in each.token_ids] == batch.token_ids
    assert [at for each in passes for at in each.positions] == batch.positions
    assert [each.token_ids[row] for each in passes for row in each.wanted] == batch.wanted
    assert all(len(each.token_ids) == 8 for each in passes[:-1])
    for each in passes:
        spans = [(work.sequence, at) for work in each.works for at in range(work.start, work.start + work.num_tokens)]
        assert [at for _, at in spans] == each.positions
    whole = [(id(w.sequence), at) for w in batch.works for at in range(w.start, w.start + w.num_tokens)]
    parts = [(id(w.sequence), at) for e in passes for w in e.works for at in range(w.start, w.start + w.num_tokens)]
    assert parts == whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("gemma"), "gemma2"))


def in_passes_of_a_gpu(folder: str) -> tuple[Engine, list[Batch]]:
    """An engine that computes as on a GPU, and the passes that it makes."""
    engine = make_engine(folder)
    forward = engine.runner.forward
    assert isinstance(forward, TorchForward)
    forward._is_fixed, forward._row_multiple = True, 128
    seen: list[Batch] = []
    run = forward._run

    def noted(batch: Batch, was_broken: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(batch)
        return run(batch, was_broken)

    forward._run = noted  # type: ignore[method-assign]
    return engine, seen


def test_in_passes_a_model_says_the_same(folder: str) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 256) for _ in range(length)] for length in (3, 150, 9, 210, 17)]
    expected = generate(make_engine(folder), prompts, 12)
    engine, seen = in_passes_of_a_gpu(folder)
    assert generate(engine, prompts, 12) == expected
    assert max(len(batch.token_ids) for batch in seen) == 128


@pytest.mark.parametrize(("length", "num_passes"), [(100, 1), (150, 2), (300, 3)])
def test_a_text_that_broke_in_a_pass_before_is_broken(folder: str, length: int, num_passes: int) -> None:
    engine, seen = in_passes_of_a_gpu(folder)
    embeddings: Any = engine.runner.loaded.model.get_input_embeddings()
    embeddings.weight.data[7] = torch.inf
    texts = [[11] * 20, [11] * 5 + [7] + [11] * (length - 6), [11] * 30]
    sequences = [add(engine, text) for text in texts]
    results = engine.step()
    assert [sequences.index(result.sequence) for result in results] == [0, 2]
    (failure,) = engine.take_failures()
    assert failure.sequence is sequences[1]
    assert isinstance(failure.error, NonFiniteLogitsError)
    assert sum(work.sequence is sequences[1] for batch in seen for work in batch.works) == num_passes
