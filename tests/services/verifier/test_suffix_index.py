"""What follows the longest earlier occurrence of a text's end."""

from hypothesis import given
from hypothesis import strategies as st

from services.verifier.suffix_index import MIN_MATCH, NO_MATCH, History, SuffixIndex


def indexed(text: list[int]) -> SuffixIndex:
    index = SuffixIndex()
    index.extend(text)
    return index


def test_continues_from_the_longest_occurrence() -> None:
    text = [9, 1, 2, 3, 7, 7, 8, 5, 1, 2, 3, 4, 4, 8, 5, 1, 2, 3]
    match = indexed(text).match(2)
    assert (match.length, match.token_ids) == (5, [4, 4])


def test_the_latest_of_equal_occurrences_wins() -> None:
    assert indexed([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 6, 1, 2, 3]).match(1).token_ids == [5]


def test_nothing_is_found_where_nothing_repeats() -> None:
    assert indexed([1, 2, 3, 4, 5]).match(4) == NO_MATCH
    assert indexed([1, 2]).match(4) == NO_MATCH
    assert indexed([]).match(4) == NO_MATCH


def test_a_text_that_repeats_itself_is_continued_beyond_its_end() -> None:
    assert indexed([5, 6, 7] * 4).match(7).token_ids == [5, 6, 7, 5, 6, 7, 5]
    assert indexed([4] * 6).match(5).token_ids == [4] * 5


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_what_is_found_did_follow_an_occurrence(text: list[int], limit: int) -> None:
    match = indexed(text).match(limit)
    runs = [tuple(text[at : at + MIN_MATCH]) for at in range(len(text) - MIN_MATCH)]
    assert (match.length >= MIN_MATCH) == (len(text) >= MIN_MATCH and tuple(text[-MIN_MATCH:]) in runs)
    if match.length:
        joined = tuple(text[len(text) - match.length :] + match.token_ids[:1])
        places = range(len(text) - match.length)
        assert any(tuple(text[at : at + len(joined)]) == joined for at in places)
        assert len(match.token_ids) == limit


def test_other_texts_are_remembered_within_bounds() -> None:
    history = History(100)
    history.add([1, 2, 3, 4, 5])
    assert history.match([9, 1, 2, 3], 2).token_ids == [4, 5]
    for start in range(1000, 3000, 50):
        history.add(list(range(start, start + 40)))
    assert history.match([9, 1, 2, 3], 2) == NO_MATCH
    assert history.match([2960, 2961, 2962], 1).token_ids == [2963]
