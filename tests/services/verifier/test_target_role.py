"""Commits: what is accepted, what ends a sequence, and that no proposal ever changes a token."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.background import BACKGROUND_PRIORITY
from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.engine import Engine
from services.verifier.accept import Finish
from services.verifier.load import Way
from services.verifier.target_role import TargetRole
from support.driver import make_engine
from support.speculating import Collected, open_target, run

PROMPT = [10, 20, 30, 40]
NUM_TOKENS = 30
PARAMS = SamplingParams(temperature=0.8, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64, max_step_tokens=64)


@pytest.fixture(scope="module")
def answer(engine: Engine) -> list[int]:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    _, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=0)
    run(role)
    assert all(len(c.token_ids) == 1 and c.num_drafted == 0 for c in commits)
    return [c.token_ids[0] for c in commits]


def test_a_perfect_proposal_commits_a_block_and_a_bonus(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    target, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=5)
    digest = extend_digest(EMPTY_DIGEST, PROMPT)
    role.propose(target, len(PROMPT), digest, answer)
    run(role)
    assert [len(c.token_ids) for c in commits] == [6] * 5
    assert [c.num_accepted for c in commits] == [5] * 5
    assert [t for c in commits for t in c.token_ids] == answer
    assert commits[-1].finish is not None
    engine.check_integrity()


def test_commits_are_waited_for_where_a_draft_proposes_what_follows(engine: Engine) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    awaited = []
    for way in Way:
        role.planner.way = way
        awaited += [way] if role.is_awaited else []
    assert awaited == [Way.DRAFT]


def test_anchors_of_commits_chain(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    target, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=4)
    role.propose(target, len(PROMPT), extend_digest(EMPTY_DIGEST, PROMPT), answer[:7])
    run(role)
    text = list(PROMPT)
    for commit in commits:
        assert commit.position == len(text)
        assert commit.digest == extend_digest(EMPTY_DIGEST, text)
        text += commit.token_ids


def test_the_first_wrong_token_ends_the_round(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    target, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=5)
    wrong = [*answer[:2], (answer[2] + 1) % 256, *answer[3:5]]
    role.propose(target, len(PROMPT), extend_digest(EMPTY_DIGEST, PROMPT), wrong)
    run(role)
    assert commits[0].token_ids == answer[:3]
    assert (commits[0].num_accepted, commits[0].num_drafted) == (2, 5)
    assert [t for c in commits for t in c.token_ids] == answer


def test_an_end_of_sequence_token_ends_even_inside_an_accepted_block(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    role._eos = frozenset({answer[3]})
    params = SamplingParams(temperature=0.8, seed=11)
    target, commits = open_target(role, PROMPT, NUM_TOKENS, params, max_draft_tokens=8)
    role.propose(target, len(PROMPT), extend_digest(EMPTY_DIGEST, PROMPT), answer[:8])
    run(role)
    assert [t for c in commits for t in c.token_ids] == answer[: answer.index(answer[3]) + 1]
    assert commits[-1].finish is Finish.EOS


@given(seed=st.integers(0, 2**32))
@settings(max_examples=1000)
def test_dropped_repeated_delayed_reordered_truncated_and_falsified_proposals_change_no_token(
    engine: Engine, answer: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    target, commits = open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=rng.randint(1, 9))
    text = PROMPT + answer
    waiting: list[tuple[int, int, list[int]]] = []

    def propose() -> None:
        start = rng.randrange(len(PROMPT), len(text))
        tokens = text[start : start + rng.randint(1, 12)]
        if rng.random() < 0.4:
            tokens[rng.randrange(len(tokens))] = rng.choice([rng.randrange(256), 2**31, 256])
        digest = extend_digest(EMPTY_DIGEST, text[:start]) if rng.random() < 0.8 else rng.getrandbits(64)
        waiting.append((start, digest, tokens))
        for _ in range(rng.randint(0, 3)):
            position, digest, tokens = rng.choice(waiting)
            role.propose(target, position, digest, list(tokens), rng.randbytes(rng.choice([0, len(tokens), 3])))

    run(role, propose)
    assert [t for c in commits for t in c.token_ids] == answer
    engine.check_integrity()
    assert engine.pool.num_used == 0


def test_closing_in_the_middle_frees_everything(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    target, _ = open_target(role, PROMPT, NUM_TOKENS, PARAMS)
    role.propose(target, len(PROMPT), extend_digest(EMPTY_DIGEST, PROMPT), answer)
    role.advance(engine.step())
    assert engine.pool.num_used > 0
    role.close(target)
    role.close(target)
    role.propose(target, len(PROMPT), 0, answer)
    assert engine.pool.num_used == 0
    engine.check_integrity()


def test_a_prefix_seen_before_is_found(engine: Engine) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    prompt = list(range(60, 130))
    counts = []
    for _ in range(2):
        _, commits = open_target(role, prompt, 4, PARAMS)
        run(role)
        counts.append(commits[0].num_cached_tokens)
    assert counts == [0, 64]


def test_beside_others_the_background_is_not_speculated_for(engine: Engine, answer: list[int]) -> None:
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    targets = [open_target(role, PROMPT, NUM_TOKENS, PARAMS, max_draft_tokens=5) for _ in range(2)]
    (background, behind), (front, commits) = targets
    engine.scheduler.prioritise(background.sequence, BACKGROUND_PRIORITY)
    for target in (background, front):
        role.propose(target, len(PROMPT), extend_digest(EMPTY_DIGEST, PROMPT), answer)
    run(role)
    assert [len(c.token_ids) for c in commits] == [6] * 5
    assert [c.num_drafted for c in behind[:5]] == [0] * 5
    assert max(c.num_drafted for c in behind) > 0
    assert [t for c in behind for t in c.token_ids] == [t for c in commits for t in c.token_ids] == answer
