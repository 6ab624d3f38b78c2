"""Proposals are found by the place that they continue, and bounded whatever comes."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.verifier.proposals import MAX_AHEAD, MAX_INDEXED, ProposalIndex

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def at(position: int, text: list[int] | None = None) -> tuple[int, int]:
    return position, extend_digest(EMPTY_DIGEST, (text or TEXT)[:position])


def following(index: ProposalIndex, position: int, digest: int, limit: int) -> list[int]:
    return [token_id for token_id, _ in index.following(position, digest, limit)]


def test_a_proposal_is_found_at_its_anchor_and_inside() -> None:
    index = ProposalIndex()
    index.add(*at(2), TEXT[2:6], end=2)
    assert following(index, *at(2), limit=9) == TEXT[2:6]
    assert following(index, *at(4), limit=9) == TEXT[4:6]
    assert following(index, *at(2), limit=3) == TEXT[2:5]
    assert following(index, *at(6), limit=9) == []
    assert following(index, 2, 12345, limit=9) == []


@given(st.permutations([(2, 4), (4, 6), (6, 8), (3, 5), (2, 4)]))
def test_pieces_join_in_any_order_and_repetition_changes_nothing(pieces: list[tuple[int, int]]) -> None:
    index = ProposalIndex()
    for start, stop in pieces:
        index.add(*at(start), TEXT[start:stop], end=2)
    assert following(index, *at(2), limit=99) == TEXT[2:]


def test_a_branch_is_found_when_the_text_takes_it() -> None:
    index = ProposalIndex()
    index.add(*at(2), TEXT[2:6], end=2)
    other = [*TEXT[:3], 7]
    index.add(*at(4, other), [8, 8], end=2)
    assert following(index, *at(4, other), limit=9) == [8, 8]
    assert following(index, *at(4), limit=9) == TEXT[4:6]


def test_what_lies_before_the_end_is_forgotten() -> None:
    index = ProposalIndex()
    index.add(*at(2), TEXT[2:6], end=2)
    index.forget_before(5)
    assert len(index) == 1
    index.add(*at(0), TEXT[:4], end=5)
    assert len(index) == 1


def test_a_million_tokens_take_bounded_memory() -> None:
    index = ProposalIndex()
    index.add(0, EMPTY_DIGEST, [1] * 1_000_000, end=0)
    assert len(index) <= MAX_AHEAD
    for digest in range(1, 100):
        index.add(1, digest, [1] * 100, end=0)
    assert len(index) <= MAX_INDEXED
    before = len(index)
    index.add(10_000_000, 5, [1], end=0)
    assert len(index) == before


def test_confidences_go_with_their_tokens_and_are_ignored_when_they_do_not_fit() -> None:
    index = ProposalIndex()
    index.add(*at(2), TEXT[2:5], end=2, confidences=bytes([255, 0, 51]))
    assert index.following(*at(2), limit=9) == [(4, 1.0), (1, 0.0), (5, 0.2)]
    index.add(*at(2), TEXT[2:5], end=2, confidences=bytes([255]))
    assert index.following(*at(2), limit=9) == [(4, None), (1, None), (5, None)]
