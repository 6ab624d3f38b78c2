"""Adapters in an engine compute what transformers and PEFT compute, whatever else is in the batch."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.errors import FailedPreconditionError
from services.common.lora.config import WEIGHTS_NAME
from services.engine.adapter import Adapter, AdapterError, Pair, Target
from services.engine.config import Dtype
from services.engine.cpu.forward import CpuForward
from services.engine.engine import Engine
from services.engine.lora import Product, product_of
from services.engine.roots import Roots
from services.engine.scheduler import Work
from services.engine.sequence import NO_SLOT, Sequence
from services.engine.torch_forward.stacked_lora import StackedLora
from services.model_server.adapter_files import read_adapter
from services.verifier.target_role import TargetRole
from support.driver import GREEDY, add, append, generate, make_engine
from support.lora import ADAPTERS, PEFT_WARNING, continue_with_peft, read_files, save_adapter, save_adapters
from support.speculating import Collected, open_target, propose_from, run
from support.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

NUM_TOKENS = 24
PROMPTS = [random.Random(n).choices(range(3, 250), k=5 + 7 * n) for n in range(len(ADAPTERS) + 1)]


def install(engine: Engine, slot: int, folder: Path) -> None:
    engine.install_adapter(slot, read_adapter(*read_files(folder), engine.facts))


def run_mixed(engine: Engine, slots: list[int]) -> list[list[int]]:
    """Continues PROMPTS in one batch, each with its slot."""
    sequences = [
        add(engine, prompt, adapter_slot=slot, roots=Roots(bytes([slot + 1]) * 32))
        for prompt, slot in zip(PROMPTS, slots, strict=True)
    ]
    while engine.scheduler:
        for result in engine.step():
            append(result.sequence, result.token_ids[-1])
            if len(result.sequence) == result.sequence.num_prompt_tokens + NUM_TOKENS:
                engine.remove(result.sequence)
    engine.check_integrity()
    return [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in sequences]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def adapters(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_adapters(model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def expected(model: str, adapters: list[Path]) -> list[list[int]]:
    """What each prompt becomes with its adapter alone; the last one has none."""
    return [
        continue_with_peft(model, adapter, prompt, NUM_TOKENS)
        for adapter, prompt in zip([*adapters, None], PROMPTS, strict=True)
    ]


SLOTS = [*range(len(ADAPTERS)), NO_SLOT]


@pytest.fixture
def engine(model: str, adapters: list[Path]) -> Iterator[Engine]:
    made = make_engine(model, max_adapters=len(ADAPTERS), max_adapter_rank=16)
    for slot, folder in enumerate(adapters):
        install(made, slot, folder)
    yield made
    assert made.pool.num_used == 0


def test_a_mixed_batch_says_what_peft_says_of_each_alone(engine: Engine, expected: list[list[int]]) -> None:
    assert run_mixed(engine, SLOTS) == expected
    base = generate(make_engine(engine.config.model), PROMPTS, NUM_TOKENS)
    assert sum(a != b for a, b in zip(base, expected, strict=True)) == len(ADAPTERS)


@pytest.mark.parametrize("draft", ["perfect", "bad", "random"])
def test_speculation_changes_no_token_of_a_mixed_batch(engine: Engine, expected: list[list[int]], draft: str) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    opened = [
        open_target(role, prompt, NUM_TOKENS, adapter_slot=slot) for prompt, slot in zip(PROMPTS, SLOTS, strict=True)
    ]
    run(role, propose_from(role, opened, PROMPTS, expected, draft, random.Random(3)))
    assert [[t for c in commits for t in c.token_ids] for _, commits in opened] == expected
    accepted = sum(c.num_accepted for _, commits in opened for c in commits)
    assert accepted > (NUM_TOKENS if draft != "random" else -1)


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox", "gpt2", "phi3", "qwen3", "gptj", "openai-gpt"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_other_architectures_say_what_peft_says(tmp_path: Path, architecture: str) -> None:
    model = save_tiny(tmp_path / "model", architecture)
    engine = make_engine(model, max_adapters=2, max_adapter_rank=8)
    modules = sorted({name.rpartition(".")[2] for name in engine.facts.targets})
    folders = [
        save_adapter(model, tmp_path / "a", 5, modules, 1, fan_in_fan_out=architecture in ("gpt2", "openai-gpt")),
        save_adapter(model, tmp_path / "b", 8, modules[:1], 2, fan_in_fan_out=architecture in ("gpt2", "openai-gpt")),
    ]
    for slot, folder in enumerate(folders):
        install(engine, slot, folder)
    slots = [0, 1, NO_SLOT, 1, 0, NO_SLOT, 0, 0, 1]
    by_slot = {0: folders[0], 1: folders[1], NO_SLOT: None}
    wanted = [
        continue_with_peft(model, by_slot[slot], prompt, NUM_TOKENS)
        for prompt, slot in zip(PROMPTS[:4], slots[:4], strict=True)
    ]
    assert run_mixed(engine, slots)[:4] == wanted


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox"])
def test_adapters_side_by_side_say_what_peft_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """The way of GPUs, on the CPU."""

    def side_by_side(products: list[Product], num_slots: int, max_rank: int, *, half: bool) -> StackedLora:
        assert not half
        return StackedLora(products, num_slots, max_rank, torch.float32, torch.device("cpu"))

    monkeypatch.setattr("services.engine.forwards.RowLora", side_by_side)
    model = save_tiny(tmp_path / "model", architecture)
    engine = make_engine(model, max_adapters=3, max_adapter_rank=16)
    modules = sorted({name.rpartition(".")[2] for name in engine.facts.targets})
    folders = [save_adapter(model, tmp_path / str(rank), rank, modules, rank) for rank in (16, 3)]
    install(engine, 0, folders[1])
    install(engine, 2, folders[1])
    install(engine, 0, folders[0])  # What a larger rank leaves behind and what a smaller one does.
    install(engine, 1, folders[0])
    install(engine, 1, folders[1])
    slots = [0, 1, NO_SLOT, 2, 0, 1, 2, NO_SLOT, 0]
    by_slot = {0: folders[0], 1: folders[1], 2: folders[1], NO_SLOT: None}
    wanted = [
        continue_with_peft(model, by_slot[slot], prompt, NUM_TOKENS)
        for prompt, slot in zip(PROMPTS[:4], slots[:4], strict=True)
    ]
    assert run_mixed(engine, slots)[:4] == wanted


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_bits_do_not_depend_on_the_adapters_of_others(model: str, adapters: list[Path], dtype: Dtype) -> None:
    """Log-probabilities, whose bits are those of the logits, alone and in random company."""

    def logprobs(engine: Engine, chosen: list[int], watched: int) -> list[float]:
        params = GREEDY.__class__(temperature=0.0, ignore_eos=True, logprobs=1)
        found: list[float] = []
        sequences = [
            add(engine, PROMPTS[n], params, adapter_slot=SLOTS[n], roots=Roots(bytes([n]) * 32)) for n in chosen
        ]
        while any(len(s) < s.num_prompt_tokens + 6 for s in sequences):
            for result in engine.step():
                append(result.sequence, result.token_ids[-1])
                entry = result.logprobs[-1]
                if result.sequence is sequences[watched] and entry is not None:
                    found.append(entry.logprob)
        for sequence in sequences:
            engine.remove(sequence)
        return found[:6]

    engine = make_engine(model, dtype, max_adapters=len(ADAPTERS), max_adapter_rank=16)
    for slot, folder in enumerate(adapters):
        install(engine, slot, folder)
    rng = random.Random(5)
    for number in range(len(PROMPTS)):
        alone = logprobs(engine, [number], 0)
        for _ in range(3):
            others = rng.sample([n for n in range(len(PROMPTS)) if n != number], k=rng.randrange(1, 6))
            at = rng.randrange(len(others) + 1)
            assert logprobs(engine, [*others[:at], number, *others[at:]], at) == alone


def test_an_adapter_takes_the_place_of_another(engine: Engine, adapters: list[Path], expected: list[list[int]]) -> None:
    for slot in range(len(ADAPTERS)):
        install(engine, slot, adapters[(slot + 1) % len(ADAPTERS)])
    moved = run_mixed(engine, [(slot - 1) % len(ADAPTERS) if slot != NO_SLOT else slot for slot in SLOTS])
    assert moved == expected


def save_exploding(model: str, folder: Path, value: float) -> Path:
    """An adapter of finite numbers that makes the model's not finite."""
    save_adapter(model, folder, 4, ["down_proj"], 0)
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({name: torch.full_like(tensor, value) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    return folder


def test_an_adapter_that_breaks_the_model_ends_its_own_sequence(
    tmp_path: Path, model: str, adapters: list[Path], expected: list[list[int]]
) -> None:
    engine = make_engine(model, max_adapters=2, max_adapter_rank=16)
    install(engine, 0, adapters[5])
    install(engine, 1, save_exploding(model, tmp_path / "adapter", 3e38))
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    opened = [open_target(role, PROMPTS[n], NUM_TOKENS, adapter_slot=s) for n, s in ((5, 0), (5, 1), (8, NO_SLOT))]
    run(role)
    good, broken, base = (commits for _, commits in opened)
    assert [t for c in good for t in c.token_ids] == expected[5]
    assert [t for c in base for t in c.token_ids] == expected[8]
    assert [type(event) for event in broken] == [FailedPreconditionError]
    assert engine.pool.num_used == 0
    again, _ = open_target(role, PROMPTS[5], NUM_TOKENS, adapter_slot=0), run(role)
    assert [t for c in again[1] for t in c.token_ids] == expected[5]


def test_what_a_broken_sequence_leaves_behind_breaks_no_other(tmp_path: Path) -> None:
    """Masked keys take part in torch's attention: infinity among them would reach those who get the blocks next."""
    model = save_tiny(tmp_path / "model", "olmo2")
    engine = make_engine(model, max_adapters=1, num_blocks=9)
    assert not isinstance(engine.runner.forward, CpuForward)
    install(engine, 0, save_exploding(model, tmp_path / "adapter", 3e38))
    wanted = [continue_with_peft(model, None, prompt, NUM_TOKENS) for prompt in PROMPTS[:2]]
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    _, broken = open_target(role, list(range(3, 123)), NUM_TOKENS, adapter_slot=0)
    run(role)
    assert [type(event) for event in broken] == [FailedPreconditionError]
    for _ in range(3):
        assert generate(engine, PROMPTS[:2], NUM_TOKENS) == wanted


def test_numbers_too_large_for_the_type_are_refused(tmp_path: Path, model: str) -> None:
    engine = make_engine(model, Dtype.BFLOAT16, max_adapters=1)
    with pytest.raises(AdapterError, match="too large"):
        install(engine, 0, save_exploding(model, tmp_path / "adapter", torch.finfo(torch.float32).max))


def test_an_adapter_side_by_side_leaves_the_rows_of_others_alone() -> None:
    product = product_of(Target("layer", 8, 8))
    lora = StackedLora([product], 2, 4, torch.float32, torch.device("cpu"))
    for slot, value in ((0, 0.5), (1, 3e38)):
        pair = Pair(torch.full((4, 8), value), torch.full((8, 4), value))
        lora.install(slot, lora.packer.pack(Adapter(4, 1.0, {"layer": pair})))
    works = [Work(Sequence([1], 1, GREEDY, adapter_slot=0), 0, 1), Work(Sequence([1], 1, GREEDY), 0, 1)]
    assert lora.select(works, 2)
    x, y = torch.ones(2, 8) * 99, torch.zeros(2, 8)
    lora.add(0, x, y)
    assert y[0].tolist() == [0.5 * 4 * 0.5 * 8 * 99] * 8
    assert y[1].tolist() == [0.0] * 8
    with pytest.raises(AdapterError):
        lora.packer.pack(Adapter(4, 1.0, {"layer": Pair(torch.full((4, 8), torch.inf), torch.ones(8, 4))}))


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, engine: Engine, model: str) -> None:
    other = save_tiny(tmp_path / "other", "llama", hidden_size=32)
    folder = save_adapter(other, tmp_path / "adapter", 4, ["q_proj"], 0)
    with pytest.raises(AdapterError, match="q_proj needs A"):
        install(engine, 0, folder)
    deeper = save_tiny(tmp_path / "deeper", "llama", num_hidden_layers=3)
    with pytest.raises(AdapterError, match="has no layer for"):
        install(engine, 0, save_adapter(deeper, tmp_path / "deep", 4, ["q_proj"], 0))
    without = make_engine(model)
    assert not without.facts.targets
    with pytest.raises(AdapterError):
        install(without, 0, folder)
    with pytest.raises(AdapterError):
        without.install_adapter(0, None)
