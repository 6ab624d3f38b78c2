"""Blocks that one engine computed are as good in another, and only where they are what it would have computed."""

import random
from pathlib import Path

import pytest

from services.common.digest import identity_digest
from services.engine.config import Dtype
from services.engine.engine import Engine
from services.engine.roots import Roots
from services.engine.sequence import Sequence
from support.driver import add, append, generate, make_engine
from support.tiny import save_tiny

PROMPT = random.Random(7).choices(range(3, 250), k=100)
ROOT = identity_digest(namespace="test")


def run(engine: Engine, count: int) -> tuple[list[int], Sequence]:
    """The next tokens of PROMPT, and the sequence that was run."""
    sequence = add(engine, PROMPT, roots=Roots(ROOT))
    while len(sequence) < len(PROMPT) + count:
        for result in engine.step():
            append(sequence, result.token_ids[-1])
    engine.step()
    engine.remove(sequence)
    engine.check_integrity()
    return sequence.token_ids[len(PROMPT) :], sequence


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_another_engine_goes_on_from_adopted_blocks(tmp_path: Path, architecture: str, dtype: Dtype) -> None:
    model = save_tiny(tmp_path, architecture)
    first, second = make_engine(model, dtype), make_engine(model, dtype)
    assert first.facts.kv_identity == second.facts.kv_identity
    expected, computed = run(first, 12)
    digests = [computed.digest_of_block(index, 16) for index in range(6)]
    contents = first.read(digests)
    assert list(contents) == digests
    assert {content.nbytes for content in contents.values()} == {first.facts.block_bytes}
    assert second.adopt(contents) == 6
    assert second.adopt(contents) == 0
    assert {key: bytes(value) for key, value in second.read(digests).items()} == {
        key: bytes(value) for key, value in contents.items()
    }
    got, reused = run(second, 12)
    assert got == expected
    assert (computed.num_cached, reused.num_cached) == (0, 96)


def test_blocks_are_adopted_as_far_as_there_is_room(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    first, small = make_engine(model), make_engine(model, num_blocks=9)
    _, computed = run(first, 1)
    contents = first.read([computed.digest_of_block(index, 16) for index in range(6)])
    busy = add(small, PROMPT[:70])
    small.step()
    assert small.adopt(contents) <= 3
    small.remove(busy)
    small.check_integrity()
    assert generate(small, [PROMPT[:60]], 3) == generate(first, [PROMPT[:60]], 3)


def test_engines_that_round_otherwise_do_not_share(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    engines = [make_engine(model, dtype) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16)]
    engines.append(make_engine(model, Dtype.BFLOAT16, is_draft=True))
    assert len({engine.facts.kv_identity for engine in engines}) == len(engines)
