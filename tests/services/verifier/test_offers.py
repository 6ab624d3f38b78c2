"""The likeliest continuation is offered, whoever it comes from; texts are remembered for their own tenant alone."""

import random

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.roots import Roots
from services.engine.sequence import Sequence
from services.verifier.load import Way
from services.verifier.offers import Offers
from services.verifier.target_sequence import NO_OFFER, Origin, TargetSequence

TEXT = random.Random(1).sample(range(1000), 60)
"""No token occurs in it twice."""


def target(token_ids: list[int], roots: Roots | None = None, max_draft_tokens: int = 4) -> TargetSequence:
    sequence = Sequence(token_ids, min(8, len(token_ids)), SamplingParams(), roots=roots or Roots(b"a"))
    made = TargetSequence(sequence, lambda _: None, max_draft_tokens, end=1000)
    made.committed, made.digest = len(sequence), extend_digest(EMPTY_DIGEST, token_ids)
    return made


def propose(made: TargetSequence, token_ids: list[int], confidence: int) -> None:
    made.proposals.add(made.committed, made.digest, token_ids, made.committed, [confidence] * len(token_ids))


def test_without_any_source_nothing_is_offered() -> None:
    assert Offers(suffix_drafting=True).best(target(TEXT), Way.DRAFT) == NO_OFFER


def test_a_proposal_is_offered_as_far_as_there_is_room() -> None:
    made = target(TEXT[:20])
    propose(made, TEXT[20:40], 255)
    offer = Offers(suffix_drafting=True).best(made, Way.DRAFT)
    assert (offer.origin, offer.token_ids) == (Origin.DRAFT, TEXT[20:24])
    assert offer.confidences == [1.0] * 4
    assert offer.survival == sorted(offer.survival, reverse=True)
    made.max_draft_tokens = 0
    assert Offers(suffix_drafting=True).best(made, Way.DRAFT) == NO_OFFER


def test_a_text_that_repeats_itself_is_continued_as_before() -> None:
    made = target(TEXT + TEXT[:30])
    assert Offers(suffix_drafting=True).best(made, Way.DRAFT).token_ids == TEXT[30:34]
    assert Offers(suffix_drafting=False).best(made, Way.DRAFT) == NO_OFFER


def test_the_surer_source_is_taken() -> None:
    doubtful, sure = target(TEXT + TEXT[:30]), target(TEXT + TEXT[:4])
    propose(doubtful, [1, 2, 3, 4], 0)
    propose(sure, [1, 2, 3, 4], 255)
    offers = Offers(suffix_drafting=True)
    assert offers.best(doubtful, Way.DRAFT).origin is Origin.SUFFIX
    assert offers.best(sure, Way.DRAFT).origin is Origin.DRAFT


def test_what_was_said_is_remembered_for_the_same_root_alone() -> None:
    offers = Offers(suffix_drafting=True)
    offers.remember(target(TEXT))
    assert offers.best(target(TEXT[20:40]), Way.DRAFT).token_ids == TEXT[40:44]
    assert offers.best(target(TEXT[20:40], Roots(b"b")), Way.DRAFT) == NO_OFFER


def test_only_so_many_roots_are_remembered_the_last_used_ones() -> None:
    offers = Offers(suffix_drafting=True)
    roots = [Roots(bytes([number])) for number in range(65)]
    for one in roots:
        offers.remember(target(TEXT, one))
        assert offers.best(target(TEXT[20:40], roots[0]), Way.DRAFT) != NO_OFFER
    assert offers.best(target(TEXT[20:40], roots[1]), Way.DRAFT) == NO_OFFER
    assert offers.best(target(TEXT[20:40], roots[64]), Way.DRAFT) != NO_OFFER


def test_sequences_without_speculation_leave_nothing_behind() -> None:
    offers = Offers(suffix_drafting=True)
    offers.remember(target(TEXT, max_draft_tokens=0))
    assert offers.best(target(TEXT[20:40]), Way.DRAFT) == NO_OFFER


def test_each_way_looks_at_its_own_sources_alone() -> None:
    made = target(TEXT + TEXT[:30])
    propose(made, [1, 2, 3, 4], 255)
    offers = Offers(suffix_drafting=True)
    assert offers.best(made, Way.DRAFT).origin is Origin.DRAFT
    assert offers.best(made, Way.TEXT).origin is Origin.SUFFIX
    indexed = len(made.suffixes)
    made.committed += 1
    made.sequence.token_ids.append(5)
    assert offers.best(made, Way.OFF) == NO_OFFER
    assert len(made.suffixes) == indexed
