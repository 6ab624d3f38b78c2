"""A draft in the verifier's process: no token depends on it, nothing waits for it, and what fails is it alone."""

import logging
import time
from collections import abc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.common.checkpoint import CheckpointError
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype, EngineConfig
from services.engine.engine import Engine
from services.engine.errors import Failure
from services.engine.roots import Roots
from services.engine.sequence import Sequence
from services.verifier.own_draft import OwnDraft
from services.verifier.planner import Planner
from services.verifier.settings import Speculation
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed, Origin, TargetSequence
from support.driver import DEVICE, GREEDY, generate, make_engine
from support.speculating import Collected, open_target
from support.tiny import save_tiny, save_tokenizer

PROMPTS = [[10, 20, 30, 40], [7, 8, 9] * 20, list(range(50, 90))]
NUM_TOKENS = 40
SEEDED = SamplingParams(temperature=0.8, seed=11, ignore_eos=True, logit_bias={3: 2.0}, logprobs=2)


def config(model: str, **more: Any) -> EngineConfig:
    return EngineConfig(model=model, device=DEVICE, dtype=Dtype.FLOAT32, num_blocks=64, **more)


def role_with(target: str, draft: str, planner: Planner | None = None, **more: Any) -> TargetRole:
    engine = make_engine(target)
    own = OwnDraft.load(config(draft, **more), engine)
    return TargetRole(engine, Collected(), planner, own, suffix_drafting=False)  # type: ignore[arg-type]


def run(role: TargetRole, each_round: abc.Callable[[], object] = lambda: None) -> None:
    """To the end of all sequences, as the engine's thread does it: what would wait would hang."""
    while role.engine.scheduler:
        role.prepare(time.monotonic())
        assert role.engine.scheduler.seconds_until_runnable(time.monotonic()) == 0, "a sequence waits"
        role.advance(role.engine.step())
        each_round()


def opened(
    role: TargetRole, params: SamplingParams = GREEDY, num_tokens: int = NUM_TOKENS
) -> list[tuple[TargetSequence, list[Committed]]]:
    return [open_target(role, prompt, num_tokens, params) for prompt in PROMPTS]


def produced(texts: abc.Iterable[tuple[TargetSequence, list[Committed]]]) -> list[list[int]]:
    return [[token_id for commit in commits for token_id in commit.token_ids] for _, commits in texts]


def num_accepted(texts: abc.Iterable[tuple[TargetSequence, list[Committed]]]) -> int:
    return sum(commit.num_accepted for _, commits in texts for commit in commits)


def all_is_free(role: TargetRole) -> bool:
    assert role.own_draft is not None
    for engine in (role.engine, role.own_draft.engine):
        engine.check_integrity()
    return role.engine.pool.num_used == role.own_draft.engine.pool.num_used == 0


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_texts_are_the_same_in_fewer_rounds(target_folder: str, draft_folder: str, params: SamplingParams) -> None:
    plain = generate(make_engine(target_folder), PROMPTS, NUM_TOKENS, params=params)
    role = role_with(target_folder, draft_folder)
    texts = opened(role, params)
    run(role)
    assert produced(texts) == plain
    for _, commits in texts:
        assert len(commits) < 0.8 * NUM_TOKENS
        assert {commit.origin for commit in commits if commit.num_drafted} == {Origin.DRAFT}
        assert not any(commit.num_wanted for commit in commits), "nothing is wanted of draft services"
    assert all_is_free(role)


def test_nothing_is_wanted_of_it_while_speculation_is_off(target_folder: str, draft_folder: str) -> None:
    role = role_with(target_folder, draft_folder, Planner(Speculation.NEVER))
    texts = opened(role)
    run(role)
    assert num_accepted(texts) == 0
    assert role.own_draft is not None
    assert role.own_draft.engine.num_steps == 0
    assert all_is_free(role)


def test_a_long_prompt_is_followed_by_a_step_a_round(target_folder: str, draft_folder: str) -> None:
    role = role_with(target_folder, draft_folder, max_step_tokens=16)
    assert role.own_draft is not None
    steps = [0]
    long = open_target(role, [5, 6] * 60, 60)
    short = open_target(role, [10, 20], 60)
    first: dict[int, int] = {}

    def note() -> None:
        assert role.own_draft is not None
        steps.append(role.own_draft.engine.num_steps)
        for number, (_, commits) in enumerate((long, short)):
            if number not in first and any(commit.num_drafted for commit in commits):
                first[number] = len(steps)

    run(role, note)
    assert first[1] < first[0], "the short text is proposed for while the long one is followed"
    assert max(after - before for before, after in pairwise(steps)) <= 8
    assert produced([long, short]) == [
        generate(make_engine(target_folder), [prompt], 60)[0] for prompt in ([5, 6] * 60, [10, 20])
    ]
    assert all_is_free(role)


def test_a_text_that_the_draft_cannot_know_goes_on_without_it(target_folder: str, tmp_path: Path) -> None:
    """Its context is shorter, and it has fewer tokens: the vocabulary is padded otherwise."""
    small = save_tiny(tmp_path / "small", "llama", seed=0, vocab_size=200, max_position_embeddings=32)
    plain = generate(make_engine(target_folder), PROMPTS, NUM_TOKENS)
    own = OwnDraft(Engine(config(small, is_draft=True)))
    role = TargetRole(make_engine(target_folder), Collected(), own_draft=own, suffix_drafting=False)  # type: ignore[arg-type]
    texts = opened(role, SamplingParams(temperature=0.0, ignore_eos=True, stop_token_ids=frozenset({255})))
    run(role)
    assert [text[: len(same)] for text, same in zip(plain, produced(texts), strict=True)] == produced(texts)
    assert all_is_free(role)


def test_a_draft_that_fails_is_told_of_once_and_ends_no_text(
    target_folder: str, draft_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = generate(make_engine(target_folder), PROMPTS, NUM_TOKENS)
    role = role_with(target_folder, draft_folder)
    assert role.own_draft is not None
    step, engine = role.own_draft.engine.step, role.own_draft.engine

    def breaks(bell: int) -> Any:
        if engine.num_steps > 5:
            raise MemoryError("no room")
        return step(bell)

    engine.step = breaks  # type: ignore[method-assign]
    texts = opened(role)
    with caplog.at_level(logging.ERROR):
        run(role)
        more = opened(role)
        run(role)
    assert produced(texts) == produced(more) == plain
    assert num_accepted(texts) > 0
    assert num_accepted(more) == 0
    assert caplog.text.count("the draft in this process has failed") == 1
    assert role.engine.pool.num_used == 0
    assert role.own_draft.digest == "", "nobody is told of it any more"


def test_what_is_held_for_clients_is_handed_over_while_the_draft_computes_unless_its_step_failed(
    target_folder: str, draft_folder: str
) -> None:
    role = role_with(target_folder, draft_folder)
    assert role.own_draft is not None
    outbox: Any = role._outbox
    outbox.num_told = 0
    outbox.told = lambda: setattr(outbox, "num_told", outbox.num_told + 1)
    target, _ = open_target(role, PROMPTS[0], NUM_TOKENS)
    role.prepare(time.monotonic())
    role.advance(role.engine.step())
    assert outbox.num_told > 0
    told, own = outbox.num_told, role.own_draft.engine
    failing = own.take_failures
    own.take_failures = lambda: failing() or [Failure(s, RuntimeError("no")) for s in own.scheduler]  # type: ignore[method-assign]
    role.prepare(time.monotonic())
    role.advance(role.engine.step())
    assert outbox.num_told == told, "it may have ended before the bell was rung"
    run(role)
    assert target.committed == len(PROMPTS[0]) + NUM_TOKENS


def test_blocks_are_as_long_as_the_targets_and_kept_nowhere_else(target_folder: str, draft_folder: str) -> None:
    role = role_with(target_folder, draft_folder, block_size=32)
    assert role.own_draft is not None
    engine = role.own_draft.engine
    assert engine.facts.block_size == role.engine.facts.block_size == 16
    sequence = Sequence(range(100), 100, GREEDY, roots=Roots(b"own", label="somebody"))
    role.open(TargetSequence(sequence, lambda _: None, 4, 140))
    run(role)
    assert engine.num_steps > 0
    assert not engine.scheduler.registered
    assert role.engine.scheduler.registered


def test_a_draft_of_another_tokenizer_is_refused(target_folder: str, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama", seed=1, vocab_size=128)
    engine = make_engine(target_folder)
    with pytest.raises(CheckpointError, match="other has 128 tokens and the model 256"):
        OwnDraft.load(config(other), engine)
    own_tokens = tmp_path / "own"
    save_tiny(own_tokens, "llama", seed=1)
    save_tokenizer(own_tokens)
    file = own_tokens / "tokenizer.json"
    file.write_text(file.read_text().replace('"a":', '"§":', 1))
    with pytest.raises(CheckpointError, match=r"tokenizer of the draft .*own is another than the model's"):
        OwnDraft.load(config(str(own_tokens)), engine)
