"""Stop strings never leak, whatever the pieces in which a text comes."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.generation.stop_strings import StopStrings


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """What may be shown of the whole text: it grows character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: min(text[:end].find(stop) for stop in ended)], True
    return text, False


@given(
    text=st.text("ab\n", max_size=40),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_equals_the_reference_character_by_character(text: str, stops: list[str]) -> None:
    watcher = StopStrings(stops)
    shown, stopped = "", False
    for character in text:
        passed = watcher.push(character)
        shown += passed.text
        if passed.stopped:
            stopped = True
            break
    else:
        shown += watcher.flush()
    assert (shown, stopped) == reference(text, stops)


@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_no_part_of_a_stop_string_is_shown_before_it_is_known(pieces: list[str], stops: list[str]) -> None:
    watcher = StopStrings(stops)
    shown = ""
    for piece in pieces:
        passed = watcher.push(piece)
        shown += passed.text
        assert not any(stop in shown for stop in stops)
        if passed.stopped:
            text = "".join(pieces)
            assert any(text.startswith(shown + stop) for stop in stops)
            return
    assert shown + watcher.flush() == "".join(pieces)


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopStrings([]).push("abc").text == "abc"
