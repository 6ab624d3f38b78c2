"""A step that fails ends the sequences that fail alone; the engine ends only when it cannot be trusted."""

from collections import abc
from typing import Any

import pytest
import torch

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype, Weights
from services.engine.engine import Engine
from services.engine.errors import BrokenEngineError
from services.engine.model_runner import Result
from services.engine.sampler import NonFiniteLogitsError
from services.engine.scheduler import Work
from services.engine.sequence import Sequence
from services.verifier.target_role import TargetRole
from support.driver import GREEDY, add, append, generate, make_engine
from support.speculating import Collected, open_target, run
from support.tiny import save_tiny

POISON = 77
PROMPTS = [[number, 5, 6, 7, 8] for number in range(10, 19)]


@pytest.fixture
def engine(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64, block_size=4)


def break_on(engine: Engine, error: abc.Callable[[], Exception], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has every step fail that holds the poison; returns where the sizes of steps are noted."""
    run, sizes = engine.runner.run, list[int]()

    def broken(works: abc.Sequence[Work], bell: int) -> list[Result]:
        sizes.append(len(works))
        if any(POISON in work.sequence.token_ids for work in works):
            raise error()
        return run(works, bell)

    monkeypatch.setattr(engine.runner, "run", broken)
    return sizes


def run_to_the_end(engine: Engine, num_tokens: int) -> dict[Sequence, Exception]:
    """Steps until all sequences have so many tokens or have failed; returns those that have."""
    failed: dict[Sequence, Exception] = {}
    while engine.scheduler:
        results = engine.step()
        for sequence, error in engine.take_failures():
            failed[sequence] = error
            engine.remove(sequence)
        for result in results:
            append(result.sequence, result.token_ids[-1])
            if len(result.sequence) == result.sequence.num_prompt_tokens + num_tokens:
                engine.remove(result.sequence)
    engine.check_integrity()
    assert engine.pool.num_used == 0
    return failed


@pytest.mark.parametrize("at", [0, 4, 8])
def test_the_sequence_that_fails_alone_ends_and_the_others_get_their_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    expected = generate(engine, PROMPTS, 6)
    sizes = break_on(engine, lambda: IndexError("broken on purpose"), monkeypatch)
    sequences = [add(engine, prompt) for prompt in PROMPTS]
    poisoned = Sequence([1, POISON], 2, GREEDY, priority=9 - 3 * at)
    engine.add(poisoned)
    failed = run_to_the_end(engine, 6)
    assert list(failed) == [poisoned]
    assert isinstance(failed[poisoned], IndexError)
    assert [s.token_ids[s.num_prompt_tokens :] for s in sequences] == expected
    assert max(sizes) == 10
    assert len(sizes) < 6 + 2 * 5, "halves, not one by one"


def test_memory_that_runs_out_once_costs_a_repetition_and_twice_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = engine.runner.run, list[int]()

    def small(works: abc.Sequence[Work], bell: int) -> list[Result]:
        sizes.append(len(works))
        if len(works) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(works, bell)

    monkeypatch.setattr(engine.runner, "run", small)
    most = 5
    for prompt in PROMPTS:
        add(engine, prompt)
    results = engine.step()
    assert len(results) == len(PROMPTS)
    assert sizes == [9, 4, 5]
    assert not engine.take_failures()
    for result in results:
        append(result.sequence, result.token_ids[-1])
    most = 2
    with pytest.raises(BrokenEngineError, match="memory ran out"):
        engine.step()


@pytest.mark.parametrize("said", ["CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED"])
def test_an_error_of_the_device_ends_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    break_on(engine, lambda: RuntimeError(said), monkeypatch)
    add(engine, [1, POISON])
    with pytest.raises(BrokenEngineError):
        engine.step()


def test_blocks_that_disagree_after_a_failure_end_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    break_on(engine, lambda: IndexError("broken on purpose"), monkeypatch)
    add(engine, [1, POISON])
    assert engine.pool.allocate() is not None
    with pytest.raises(BrokenEngineError, match="blocks"):
        engine.step()


ROUNDED = {"dtype": Dtype.BFLOAT16, "weights": Weights.INT8}
OWN = {"num_blocks": 16, "block_size": 4}
"""No forward of ours takes blocks of four tokens."""


@pytest.fixture(
    params=[
        ("llama", {}),
        ("qwen3", {}),
        ("qwen3", {"dtype": Dtype.BFLOAT16}),
        ("qwen3", ROUNDED),
        ("qwen3", OWN),
        ("gpt_neox", {}),
    ],
    ids=["llama", "qwen3", "bfloat16", "int8", "own forward", "gpt_neox"],
)
def poisoned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model whose embedding of one token is not a number; its forward is one of ours, or the model's own."""
    from transformers import AutoModelForCausalLM

    architecture, settings = request.param
    folder = save_tiny(tmp_path_factory.mktemp("poisoned"), architecture)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = torch.nan
    if architecture == "llama":
        model.config.tie_word_embeddings = False
        head = torch.nn.Linear(64, 256, bias=False)
        model.lm_head = head
    model.save_pretrained(folder)
    return make_engine(folder, **{"num_blocks": 5, **settings})


def test_a_text_whose_numbers_are_not_finite_ends_alone_and_leaves_nothing_behind(poisoned: Engine) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, logit_bias={POISON: -100.0})
    alone = generate(poisoned, [[9, 5, 6, 7, 8]], 8, params=params)
    for _ in range(6):
        bad, good = add(poisoned, [3, 4, 5, 6, 7, POISON]), add(poisoned, [9, 5, 6, 7, 8], params)
        failed = run_to_the_end(poisoned, 8)
        assert isinstance(failed[bad], NonFiniteLogitsError)
        assert good.token_ids[5:] == alone[0]


def test_a_proposed_token_whose_numbers_are_not_finite_ends_no_text_and_changes_no_token(poisoned: Engine) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, logit_bias={POISON: -100.0})
    prompt, expected = [9, 5, 6, 7, 8], generate(poisoned, [[9, 5, 6, 7, 8]], 8, params=params)[0]
    for place in range(5):
        role = TargetRole(poisoned, Collected())  # type: ignore[arg-type]
        target, commits = open_target(role, prompt, 8, params)
        proposed = [*expected[:place], POISON, *expected[place + 1 :]]
        role.propose(target, len(prompt), extend_digest(EMPTY_DIGEST, prompt), proposed)
        run(role)
        assert [token_id for commit in commits for token_id in commit.token_ids] == expected
        assert poisoned.take_failures() == []


@pytest.mark.parametrize("place", range(7))
def test_a_token_whose_numbers_are_not_finite_ends_a_text_wherever_it_stands(poisoned: Engine, place: int) -> None:
    text = [3, 4, 5, 6, 7, 8, 9]
    text[place] = POISON
    poisoned.scheduler.max_step_tokens = 3
    bad = add(poisoned, text)
    assert isinstance(run_to_the_end(poisoned, 1)[bad], NonFiniteLogitsError)


def test_a_model_whose_numbers_are_never_finite_ends_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.runner.forward.run
    monkeypatch.setattr(engine.runner.forward, "run", lambda batch: run(batch) * torch.nan)
    add(engine, [1, 2, 3])
    with pytest.raises(BrokenEngineError, match="not finite"):
        engine.step()


def test_a_model_whose_numbers_are_never_finite_does_not_start(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine.runner.forward.run
    monkeypatch.setattr(engine.runner.forward, "run", lambda batch: run(batch) * torch.nan)
    with pytest.raises(BrokenEngineError, match="not finite"):
        engine.warm_up()


def test_what_is_adopted_is_known_only_once_it_is_there(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="size"):
        engine.adopt({b"a" * 32: b"too short"})
    engine.check_integrity()
    assert engine.pool.num_used == 0
    assert engine.pool.find(b"a" * 32) is None
