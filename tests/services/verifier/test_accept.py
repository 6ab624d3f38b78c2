"""What a round decides is the target's own picks, as far as the proposal goes along with them."""

from hypothesis import assume, given
from hypothesis import strategies as st

from services.verifier.accept import Accepted, Finish, accept

TOKENS = st.integers(0, 3)
"""Few tokens, so that proposals and picks often agree."""
ENDS = st.dictionaries(TOKENS, st.sampled_from([Finish.EOS, Finish.STOP]), max_size=2)
ROOM = st.integers(1, 9)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Proposed tokens and picks; now and then a step had no room for all of them."""
    proposed = draw(st.lists(TOKENS, max_size=7))
    picks = draw(st.lists(TOKENS, min_size=1, max_size=len(proposed) + 1))
    return proposed, picks


def naive(proposed: list[int], picks: list[int], ends: dict[int, Finish], room: int) -> Accepted:
    """A pick counts when all that was proposed before it is what the target picked there."""
    text: list[int] = []
    num_accepted = 0
    for at, pick in enumerate(picks):
        if proposed[:at] != picks[:at]:
            break
        text.append(pick)
        num_accepted += proposed[at : at + 1] == [pick]
        if pick in ends or len(text) == room:
            return Accepted(text, num_accepted, ends.get(pick, Finish.LENGTH))
    return Accepted(text, num_accepted, None)


@given(rounds(), ENDS, ROOM)
def test_it_decides_what_single_steps_would_have_decided(
    step: tuple[list[int], list[int]], ends: dict[int, Finish], room: int
) -> None:
    assert accept(*step, ends, room) == naive(*step, ends, room)


@given(rounds(), ENDS, ROOM)
def test_only_picks_are_decided_one_at_least_and_never_more_than_there_is_room_for(
    step: tuple[list[int], list[int]], ends: dict[int, Finish], room: int
) -> None:
    proposed, picks = step
    token_ids, num_accepted, finish = accept(proposed, picks, ends, room)
    assert token_ids == picks[: len(token_ids)]
    assert 1 <= len(token_ids) <= room
    assert token_ids[:num_accepted] == proposed[:num_accepted]
    assert len(token_ids) - num_accepted in (0, 1), "at most one token is the target's alone"
    assert not ends.keys() & set(token_ids[:-1]), "nothing comes after the end"
    assert finish is ends.get(token_ids[-1], Finish.LENGTH if len(token_ids) == room else None)


@given(rounds(), ENDS, ROOM, st.lists(TOKENS, max_size=7))
def test_nothing_behind_the_first_wrong_token_matters(
    step: tuple[list[int], list[int]], ends: dict[int, Finish], room: int, other: list[int]
) -> None:
    proposed, picks = step
    wrong = next((at for at, (a, b) in enumerate(zip(proposed, picks, strict=False)) if a != b), None)
    assume(wrong is not None)
    assert accept([*proposed[: wrong + 1], *other], picks, ends, room) == accept(proposed, picks, ends, room)


@given(st.lists(TOKENS, min_size=1, max_size=7), ENDS, st.lists(TOKENS, max_size=7))
def test_any_proposals_lead_to_the_same_text(answer: list[int], ends: dict[int, Finish], guesses: list[int]) -> None:
    """The target's answer does not depend on what is proposed: here it is fixed, whatever the draft says of it."""
    text: list[int] = []
    finish = None
    while finish is None:
        proposed = guesses[len(text) : len(answer) - 1]
        picks = answer[len(text) : len(text) + len(proposed) + 1]
        token_ids, _, finish = accept(proposed, picks, ends, len(answer) - len(text))
        text += token_ids
    length = next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
    assert text == answer[:length]
