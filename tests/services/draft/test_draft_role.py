"""The draft runs ahead of what is decided, within bounds, and follows every commit."""

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.draft.confidence import Confidence, Guess
from services.draft.draft_role import DraftRole
from services.draft.draft_sequence import DraftSequence
from services.draft.path import Proposed
from services.engine.engine import Engine
from services.engine.sequence import Sequence
from support.driver import generate, make_engine
from support.speculating import Collected

PROMPT = [10, 20, 30, 40]
PARAMS = SamplingParams(temperature=0.9, seed=5, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(target_folder: str) -> Engine:
    return make_engine(target_folder, num_blocks=64)


@pytest.fixture(scope="module")
def answer(engine: Engine) -> list[int]:
    return generate(engine, [PROMPT], 60, params=PARAMS)[0]


class Sure(Confidence):
    """Takes every pick to be accepted with the same probability."""

    def __init__(self, confidence: float) -> None:
        super().__init__()
        self._confidence = confidence

    def guess(self, *given: Any) -> Guess:
        return super().guess(*given)._replace(confidence=self._confidence)


def open_draft(
    engine: Engine, length: int = 4, end: int = 400, *, ahead: bool = True, confidence: float = 1.0
) -> tuple[DraftRole, DraftSequence, list[Proposed]]:
    role = DraftRole(engine, Collected(), confidence=Sure(confidence))  # type: ignore[arg-type]
    proposals: list[Proposed] = []
    draft = DraftSequence(Sequence(PROMPT, len(PROMPT), PARAMS), proposals.append, length, end, ahead)
    role.open(draft)
    return role, draft, proposals


def run(role: DraftRole) -> None:
    """Steps until the draft is as far ahead as it may be."""
    while is_running(role):
        role.advance(role.engine.step())


def is_running(role: DraftRole) -> bool:
    return role.engine.scheduler.seconds_until_runnable(time.monotonic()) == 0


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
    assert [len(p.token_ids) for p in proposals] == [4, 2, 2, 2]
    role.close(draft)
    assert engine.pool.num_used == 0


def test_where_cores_are_shared_it_stops_at_the_end_of_a_proposal(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine, ahead=False)
    run(role)
    assert path(proposals) == answer[:4]
    role.commit(draft, len(PROMPT), answer[:5], 4)
    run(role)
    digest = extend_digest(EMPTY_DIGEST, [*PROMPT, *answer[:5]])
    assert proposals[1:] == [Proposed(len(PROMPT) + 5, digest, answer[5:9], bytes([255] * 4), 0.25)]
    role.close(draft)


def test_a_commit_that_agrees_lets_it_go_on_with_nothing_computed_twice(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    at = 0
    while at + 5 <= 50:
        run(role)
        role.commit(draft, len(PROMPT) + at, answer[at : at + 5], 4)
        at += 5
        assert draft.path.sequence.num_uncomputed <= 1
    run(role)
    assert path(proposals) == answer[: 50 + draft.max_ahead]
    role.close(draft)


@pytest.mark.parametrize("num_tokens", [16, 17, 2_000])
def test_a_text_that_is_as_long_as_it_may_get_is_let_go(engine: Engine, num_tokens: int) -> None:
    """Also where a commit says that it is longer than the model and all blocks can take."""
    role, draft, proposals = open_draft(engine, end=20)
    run(role)
    before = len(proposals)
    role.commit(draft, len(PROMPT), [7] * num_tokens, 4)
    role.commit(draft, len(PROMPT) + num_tokens, [7], 4)
    assert not is_running(role)
    assert len(proposals) == before
    assert engine.pool.num_used == 0
    role.close(draft)


def test_a_commit_that_differs_cuts_the_path(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    decided = [*answer[:2], (answer[2] + 1) % 256]
    role.commit(draft, len(PROMPT), decided, 4)
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

    def check(proposal: Proposed) -> None:
        ways = [path.sequence.token_ids for path in (draft.path, *draft.branches.values())]
        assert any(
            extend_digest(EMPTY_DIGEST, way[: proposal.position]) == proposal.digest
            and way[proposal.position : proposal.position + len(proposal.token_ids)] == proposal.token_ids
            for way in ways
        )
        assert len(proposal.confidences) == len(proposal.token_ids)

    role, draft, _ = open_draft(engine, length=rng.randint(1, 6), confidence=rng.choice([0.3, 0.8, 1.0]))
    draft.emit = check  # type: ignore[assignment]
    text = list(PROMPT)
    for _ in range(8):
        for _ in range(rng.randint(0, 12)):
            role.prepare(time.monotonic())
            if is_running(role):
                role.advance(engine.step())
        ways = [draft.path, *draft.branches.values()]
        own = rng.choice(ways).sequence.token_ids[len(text) :]
        keep = own[: rng.randint(0, len(own))]
        decided = [*keep, rng.randrange(256)] if rng.random() < 0.4 or not keep else keep
        role.commit(draft, len(text), decided, rng.randint(0, 6))
        text += decided
        assert draft.path.sequence.token_ids[: len(text)] == text
        assert draft.root == len(text)
        assert draft.root_digest == extend_digest(EMPTY_DIGEST, text)
        assert len(draft.path.sequence) <= draft.root + 2 * 6 + 2
        assert all(path.sequence.token_ids[: len(text)] == text for path in draft.branches.values())
        engine.check_integrity()
    run(role)
    assert draft.path.sent >= draft.root
    role.close(draft)
    engine.check_integrity()
    assert engine.pool.num_used == 0


def test_stale_and_impossible_commits_are_ignored(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    role.commit(draft, len(PROMPT), answer[:3], 4)
    for position, tokens in ((999, [1]), (len(PROMPT), answer[:2]), (len(PROMPT) + 3, [2**31])):
        role.commit(draft, position, tokens, 4)
        assert draft.root == len(PROMPT) + 3
    run(role)
    assert path(proposals) == answer[: 3 + draft.max_ahead]
    role.close(draft)
    role.commit(draft, draft.root, [1], 4)


def test_it_does_not_draft_past_the_end(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine, end=len(PROMPT) + 7)
    run(role)
    assert path(proposals) == answer[:7]
    role.close(draft)


def test_branches_are_what_the_target_may_pick_instead_and_go_on_from_there(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine, confidence=0.6)
    step_until_sent(role, draft)
    path_proposals = len(proposals)
    draft.verify_seconds = 100.0
    role.prepare(time.monotonic())
    assert 0 < len(draft.branches) <= 16
    for _ in range(4):
        role.prepare(time.monotonic())
        if is_running(role):
            role.advance(engine.step())
    (position, token_id), branch = next(iter(draft.branches.items()))
    way = [*draft.path.sequence.token_ids[:position], token_id]
    proposal = next(p for p in proposals[path_proposals:] if p.digest == extend_digest(EMPTY_DIGEST, way))
    assert proposal.token_ids == generate(make_alone(engine), [way], len(proposal.token_ids), params=PARAMS)[0]
    steps, taken = role.engine.num_steps, role.num_branches_taken
    role.commit(draft, len(PROMPT), way[len(PROMPT) :], 4)
    assert draft.path is branch
    assert role.num_branches_taken == taken + 1
    assert draft.path.sent == len(way) + len(proposal.token_ids), "what was sent is not sent again"
    assert role.engine.num_steps == steps, "nothing had to be computed"
    role.close(draft)
    engine.check_integrity()
    assert engine.pool.num_used == 0


def step_until_sent(role: DraftRole, draft: DraftSequence) -> None:
    while draft.path.sent == draft.root:
        role.advance(role.engine.step())


def test_branches_that_fell_away_are_freed(engine: Engine, answer: list[int]) -> None:
    role, draft, _ = open_draft(engine, confidence=0.6)
    step_until_sent(role, draft)
    draft.verify_seconds = 100.0
    role.prepare(time.monotonic())
    assert draft.branches
    role.commit(draft, len(PROMPT), [next(t for t in range(256) if (len(PROMPT), t) not in draft.branches
                                         and t != draft.path.sequence.token_ids[len(PROMPT)])], 4)  # fmt: skip
    assert not draft.branches
    role.close(draft)
    engine.check_integrity()
    assert engine.pool.num_used == 0


def test_without_time_nothing_is_prepared(engine: Engine) -> None:
    role, draft, _ = open_draft(engine, confidence=0.6)
    step_until_sent(role, draft)
    draft.verify_seconds = 0.5
    role.prepare(time.monotonic())
    assert not draft.branches
    role.close(draft)


def test_drafting_stops_where_a_token_is_too_unlikely_to_be_worth_a_step(engine: Engine) -> None:
    role, draft, proposals = open_draft(engine, length=16, ahead=False, confidence=0.4)
    run(role)
    assert len(proposals[0].token_ids) < 6
    role.close(draft)


def test_a_verifier_that_wants_nothing_is_sent_nothing(engine: Engine, answer: list[int]) -> None:
    role, draft, proposals = open_draft(engine)
    run(role)
    before, steps = len(proposals), engine.num_steps
    role.commit(draft, len(PROMPT), answer[:5], 0)
    run(role)
    assert len(proposals) == before
    assert engine.num_steps - steps <= 1
    role.commit(draft, len(PROMPT) + 5, answer[5:20], 4)
    run(role)
    assert proposals[-1].position >= len(PROMPT) + 20
    role.close(draft)
