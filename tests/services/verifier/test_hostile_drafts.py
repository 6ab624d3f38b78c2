"""A draft that proposes rubbish, is too sure of it, or floods: its own stream loses a little, the others nothing."""

import random
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.engine import Engine
from services.engine.step_times import StepTimes
from services.verifier.proposals import MAX_INDEXED
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed, TargetSequence
from support.driver import make_engine
from support.speculating import Collected, open_target, run

PROMPT = [10, 20, 30, 40]
NUM_TOKENS = 120
PARAMS = SamplingParams(temperature=1.0, seed=3, ignore_eos=True)
SURE = 255


class CostlyRows(StepTimes):
    """A row costs a fifth of a step: rubbish is worth leaving out."""

    def seconds(self, rows: int) -> float:
        return 0.01 + 0.002 * rows

    def curve(self, first: int, last: int) -> NDArray[np.float64]:
        return 0.01 + 0.002 * np.arange(first, last + 1)

    def observe(self, rows: int, seconds: float) -> None:
        pass


@pytest.fixture
def engine(target_folder: str) -> Engine:
    engine = make_engine(target_folder, num_blocks=128)
    engine.step_times = CostlyRows()
    return engine


@pytest.fixture
def answer(engine: Engine) -> list[int]:
    return speculate(engine, "silent")[0]


def speculate(engine: Engine, draft: str, answer: list[int] | None = None) -> tuple[list[int], list[Committed]]:
    """One sequence with a draft of this kind, who is always as sure as can be."""
    role = TargetRole(engine, Collected(), suffix_drafting=False)  # type: ignore[arg-type]
    target, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=8)
    rng = random.Random(5)
    run(role, lambda: propose(role, target, draft, answer or [], rng))
    return [token for commit in commits for token in commit.token_ids], commits


def propose(role: TargetRole, target: TargetSequence, draft: str, answer: list[int], rng: random.Random) -> None:
    if draft == "silent" or target.done:
        return
    at = target.committed
    digest = extend_digest(EMPTY_DIGEST, target.sequence.token_ids[:at])
    tokens = answer[at - len(PROMPT) :][:8] if draft == "good" else [rng.randrange(256) for _ in range(8)]
    if draft == "flood":
        tokens *= 1000
        for position in range(20):
            role.propose(target, at + position, rng.getrandbits(64), tokens, [SURE] * len(tokens))
    role.propose(target, at, digest, tokens, bytes([SURE] * len(tokens)))
    assert len(target.proposals) <= MAX_INDEXED


@pytest.mark.parametrize("draft", ["rubbish", "flood"])
def test_rubbish_is_soon_given_no_rows(engine: Engine, answer: list[int], draft: str) -> None:
    tokens, commits = speculate(engine, draft, answer)
    assert tokens == answer
    drafted = [commit.num_drafted for commit in commits[1:]]
    assert sum(drafted[:3]) > 0
    assert sum(drafted[30:]) < 0.2 * len(drafted[30:]), "rows went on to be spent on it"


def test_the_others_keep_their_rows(engine: Engine, answer: list[int]) -> None:
    alone = len(speculate(engine, "good", answer)[1])
    role = TargetRole(engine, Collected(), suffix_drafting=False)  # type: ignore[arg-type]
    rng = random.Random(5)
    opened = [open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=8) for _ in range(2)]
    steps = count()

    def both() -> None:
        next(steps)
        for (target, _), draft in zip(opened, ("good", "rubbish"), strict=True):
            propose(role, target, draft, answer, rng)

    run(role, both)
    good, bad = ([token for commit in commits for token in commit.token_ids] for _, commits in opened)
    assert good == bad == answer
    assert len(opened[0][1]) <= alone + 3
