"""The bits of a row's logits and KV depend on its own sequence, never on what else is in the step."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.config import Device, Dtype, Instructions, Weights
from services.engine.engine import Engine
from services.engine.forward import Batch
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from support.driver import DEVICE, GREEDY, make_engine
from support.tiny import save_tiny

VOCAB = 512
LENGTH = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Widths as models have them, odd numbers of heads included, so that kernels take their usual paths."""
    return save_tiny(
        tmp_path_factory.mktemp("wide"),
        vocab_size=VOCAB,
        hidden_size=384,
        intermediate_size=1056,
        num_attention_heads=6,
        num_key_value_heads=3,
        initializer_range=0.05,
    )


def forward(
    engine: Engine, tokens: list[int], chunks: list[int], others: list[list[int]], seed: int
) -> list[torch.Tensor]:
    """Logits of every row of `tokens`, then its keys and values, computed in these chunks beside other sequences."""
    rng = random.Random(seed)
    sequence = Sequence(tokens, len(tokens), GREEDY)
    beside = [Sequence(other, len(other), GREEDY) for other in others]
    everyone = [sequence, *beside]
    for each in everyone:
        engine.add(each)
        assert engine.scheduler._make_room(each, len(each))
    logits = []
    for chunk in chunks:
        works = [
            Work(other, other.num_computed, min(other.num_uncomputed, rng.randrange(1, 40)))
            for other in beside
            if other.num_uncomputed
        ]
        works.insert(rng.randrange(len(works) + 1), Work(sequence, sequence.num_computed, chunk))
        flat = [(s.token_ids[p], p, s is sequence) for s, start, n in works for p in range(start, start + n)]
        wanted = [row for row, (_, _, own) in enumerate(flat) if own]
        with torch.inference_mode():
            batch = Batch(works, [t for t, _, _ in flat], [p for _, p, _ in flat], wanted)
            logits.append(engine.runner.forward.run(batch).clone())
        engine.scheduler.computed(works)
    cache = engine.runner.kv_cache
    whole = sequence.block_table[: len(tokens) // cache.block_size]
    kv = [torch.frombuffer(bytearray(block), dtype=torch.uint8) for block in cache.read_blocks(whole)]
    for each in everyone:
        each.num_settled = 0  # Nothing of it is to be found again.
        engine.remove(each)
    return [torch.cat(logits), *kv]


def cut(length: int, longest: int, rng: random.Random) -> list[int]:
    chunks = []
    while length:
        chunks.append(min(length, rng.randint(1, longest)))
        length -= chunks[-1]
    return chunks


ON_CPU: list[tuple[Dtype, dict[str, object]]] = [
    *((Dtype.BFLOAT16, {"instructions": instructions}) for instructions in Instructions),
    *((Dtype.BFLOAT16, {"weights": Weights.INT8, "instructions": instructions}) for instructions in Instructions),
]


@pytest.mark.parametrize("num_threads", [1, 2, 6])
@pytest.mark.parametrize(
    ("dtype", "more"),
    [(Dtype.FLOAT32, {}), (Dtype.FLOAT16, {}), *(ON_CPU if DEVICE is Device.CPU else [(Dtype.BFLOAT16, {})])],
)
def test_equal_bits_alone_in_batches_and_in_any_chunking(
    model: str, dtype: Dtype, more: dict[str, object], num_threads: int
) -> None:
    engine = make_engine(model, dtype, num_threads=num_threads, num_blocks=512, **more)
    try:
        check_bits(engine, LENGTH, random.Random(int(dtype is Dtype.FLOAT32) + 2 * num_threads))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ["gptj", "openai-gpt"])
def test_models_that_attend_by_themselves_give_equal_bits_too(tmp_path: Path, architecture: str) -> None:
    more = {"rotary_dim": 32} if architecture == "gptj" else {}
    config = AutoConfig.for_model(
        architecture, vocab_size=VOCAB, n_embd=384, n_layer=2, n_head=6, n_positions=160, initializer_range=0.05, **more
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    check_bits(make_engine(str(tmp_path), num_blocks=512), 40, random.Random(1))


def check_bits(engine: Engine, length: int, rng: random.Random) -> None:
    tokens = [rng.randrange(VOCAB) for _ in range(length)]
    expected = forward(engine, tokens, [length], [], 0)
    assert not torch.equal(expected[0][0], expected[0][1])
    for trial, longest in enumerate([1, 2, 5, 9, 17, 33, 64, length]):
        others = [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 150))] for _ in range(trial % 5)]
        got = forward(engine, tokens, cut(length, longest, rng), others, trial)
        for part, (one, other) in enumerate(zip(expected, got, strict=True)):
            assert torch.equal(one, other), f"part {part} differs in chunks of up to {longest} tokens"


def test_linears_give_equal_bits_for_any_number_of_rows() -> None:
    from services.engine.cpu.linear import pack

    generator = torch.Generator().manual_seed(0)
    for out_features, in_features in ((1000, 384), (384, 1056), (64, 64)):
        weight = torch.randn(out_features, in_features, generator=generator)
        rows = torch.randn(400, in_features, generator=generator)
        for half in (False, True):
            layer = pack(weight, None, half=half)
            everything = layer(rows)
            assert torch.allclose(everything, rows @ weight.T, rtol=1e-2, atol=0.1)
            for count in (*range(1, 130), 240, 241, 242, 247, 254, 271, 359, 391):
                assert torch.equal(layer(rows[:count].contiguous()), everything[:count]), (half, count)
