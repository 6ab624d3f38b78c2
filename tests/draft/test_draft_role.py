"""The draft runs ahead of what is decided, within bounds, and follows every commit."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.driver import generate, make_engine
from engine.speculating import Collected
from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.draft.draft_role import DraftRole, DraftSequence, Proposed
from services.engine.engine import Engine
from services.engine.sequence import Sequence

PROMPT = [10, 20, 30, 40]
PARAMS = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64)


@pytest.fixture(scope="module")
def answer(engine: Engine) -> list[int]:
    return generate(engine, [PROMPT], 60, params=PARAMS)[0]


def open_draft(engine: Engine, length: int = 4, end: int = 400) -> tuple[DraftRole, DraftSequence, list[Proposed]]:
    role = DraftRole(engine, Collected())  # type: ignore[arg-type]
    proposals: list[Proposed] = []
    draft = DraftSequence(Sequence(PROMPT, len(PROMPT), PARAMS), proposals.append, length, end)
    role.open(draft)
    return role, draft, proposals


def run(role: DraftRole) -> None:
    """Steps until the draft is as far ahead as it may be."""
    while any(sequence.num_uncomputed for sequence in role.engine.scheduler):
        role.advance(role.engine.step())


def path(proposals: list[Proposed]) -> list[int]:
    """The tokens proposed, after a check that each proposal continues the one before."""
    text = list(PROMPT)
    for proposal in proposals:
        assert proposal.position == len(text)
        assert proposal.digest == extend_digest(EMPTY_DIGEST, text)
        text += proposal.token_ids
    return text[len(PROMPT) :]


def test_proposes_its_own_picks_as_far_as_it_may_go(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    assert path(proposals) == answer[: draft.max_ahead]
    assert [len(p.token_ids) for p in proposals] == [4, 4, 2]
    role.close(draft)
    assert engine.pool.num_used == 0


def test_where_cores_are_shared_it_stops_at_the_end_of_a_proposal(engine: Engine, answer: list[int]) -> None:
    role = DraftRole(engine, Collected())  # type: ignore[arg-type]
    proposals: list[Proposed] = []
    draft = DraftSequence(Sequence(PROMPT, len(PROMPT), PARAMS), proposals.append, 4, 400, ahead=False)
    role.open(draft)
    run(role)
    assert path(proposals) == answer[:4]
    role.commit(draft, len(PROMPT), answer[:5])
    run(role)
    digest = extend_digest(EMPTY_DIGEST, [*PROMPT, *answer[:5]])
    assert proposals[1:] == [Proposed(len(PROMPT) + 5, digest, answer[5:9])]
    role.close(draft)


def test_a_commit_that_agrees_lets_it_go_on_with_nothing_computed_twice(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    at = 0
    while at + 5 <= 50:
        run(role)
        role.commit(draft, len(PROMPT) + at, answer[at : at + 5])
        at += 5
        assert draft.sequence.num_uncomputed <= 1
    run(role)
    assert path(proposals) == answer[: 50 + draft.max_ahead]
    role.close(draft)


def test_a_commit_that_differs_cuts_the_path(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    decided = [*answer[:2], (answer[2] + 1) % 256]
    role.commit(draft, len(PROMPT), decided)
    before = len(proposals)
    run(role)
    text = PROMPT + decided
    assert proposals[before].position == len(text)
    assert proposals[before].digest == extend_digest(EMPTY_DIGEST, text)
    alone = generate(make_alone(engine), [text], 4, params=PARAMS)[0]
    assert proposals[before].token_ids == alone
    role.close(draft)
    engine.check_integrity()


def make_alone(engine: Engine) -> Engine:
    """Another engine with the same model."""
    return make_engine(engine.config.model, num_blocks=64)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_whatever_is_committed_it_proposes_what_follows(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    role, draft, proposals = open_draft(engine, length=rng.randint(1, 6))
    text = list(PROMPT)
    for _ in range(8):
        for _ in range(rng.randint(0, 12)):
            if any(s.num_uncomputed for s in engine.scheduler):
                role.advance(engine.step())
        own = draft.sequence.token_ids[len(text) :]
        keep = own[: rng.randint(0, len(own))]
        decided = [*keep, rng.randrange(256)] if rng.random() < 0.7 or not keep else keep
        role.commit(draft, len(text), decided)
        text += decided
        assert draft.sequence.token_ids[: len(text)] == text
        assert draft.root == len(text)
        assert draft.root_digest == extend_digest(EMPTY_DIGEST, text)
        assert len(draft.sequence) <= draft.root + draft.max_ahead
    run(role)
    for proposal in proposals:
        known = extend_digest(EMPTY_DIGEST, draft.sequence.token_ids[: proposal.position])
        if proposal.digest == known and proposal.position >= draft.root:
            end = proposal.position + len(proposal.token_ids)
            assert draft.sequence.token_ids[proposal.position : end] == proposal.token_ids
    assert draft.sent >= draft.root
    role.close(draft)
    engine.check_integrity()
    assert engine.pool.num_used == 0


def test_stale_and_impossible_commits_are_ignored(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    role.commit(draft, len(PROMPT), answer[:3])
    for position, tokens in ((999, [1]), (len(PROMPT), answer[:2]), (len(PROMPT) + 3, [2**31])):
        role.commit(draft, position, tokens)
        assert draft.root == len(PROMPT) + 3
    run(role)
    assert path(proposals) == answer[: 3 + draft.max_ahead]
    role.close(draft)
    role.commit(draft, draft.root, [1])


def test_it_does_not_draft_past_the_end(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine, end=len(PROMPT) + 7)
    run(role)
    assert path(proposals) == answer[:7]
    role.close(draft)
