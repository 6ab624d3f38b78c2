"""Forks share what is computed, copy what they write, and leave everything else as it was."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.engine import Engine
from support.driver import GREEDY, add, generate, make_engine

PROMPT = [(7 * i) % 251 for i in range(21)]


@pytest.fixture(scope="module")
def engine(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64, block_size=4)


@pytest.fixture(scope="module")
def alone(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64, block_size=4)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_every_fork_goes_on_as_if_it_were_alone(engine: Engine, alone: Engine, seed: int) -> None:
    rng = random.Random(seed)
    sequences = [add(engine, PROMPT[: rng.randint(2, 21)])]
    picks: dict[int, int] = {}
    for _ in range(12):
        action = rng.random()
        sequence = rng.choice(sequences)
        if action < 0.35 and len(sequences) < 6:
            fork = engine.scheduler.fork(sequence, rng.randint(1, len(sequence)), -1)
            fork.token_ids.append(rng.randrange(256))
            fork.first_logits = len(fork) - 1
            sequences.append(fork)
        elif action < 0.5 and len(sequences) > 1:
            engine.remove(sequence)
            sequences.remove(sequence)
        elif action < 0.65:
            sequence.truncate(rng.randint(sequence.num_settled, len(sequence)))
            sequence.token_ids.append(rng.randrange(256))
            sequence.first_logits = len(sequence) - 1
        else:
            sequence.token_ids.append(rng.randrange(256))
            sequence.first_logits = len(sequence) - 1
        for result in engine.step():
            picks[id(result.sequence)] = result.token_ids[-1]
        engine.check_integrity()
    for sequence in sequences:
        while sequence.num_uncomputed:
            for result in engine.step():
                picks[id(result.sequence)] = result.token_ids[-1]
        assert generate(alone, [sequence.token_ids], 1, params=GREEDY) == [[picks[id(sequence)]]]
    for sequence in sequences:
        engine.remove(sequence)
    engine.check_integrity()
    assert engine.pool.num_used == 0


def test_a_fork_computes_only_what_is_its_own(engine: Engine) -> None:
    sequence = add(engine, PROMPT)
    engine.step()
    used = engine.pool.num_used
    fork = engine.scheduler.fork(sequence, 18, -1)
    assert engine.pool.num_used == used
    fork.token_ids.append(5)
    assert fork.num_uncomputed == 1
    engine.step()
    assert engine.pool.num_used == used + 1
    engine.remove(sequence)
    engine.remove(fork)
    assert engine.pool.num_used == 0


def test_forks_lose_their_blocks_first(target_folder: str) -> None:
    engine = make_engine(target_folder, num_blocks=9, block_size=4)
    sequence = add(engine, PROMPT[:20])
    engine.step()
    fork = engine.scheduler.fork(sequence, 20, -1)
    fork.token_ids.extend([1, 2, 3])
    engine.step()
    sequence.token_ids.extend(PROMPT[:12])
    engine.step()
    assert not sequence.num_uncomputed
    assert fork.num_uncomputed
    assert engine.scheduler.num_preemptions == 1
    engine.check_integrity()
