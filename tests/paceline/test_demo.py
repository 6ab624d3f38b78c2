"""What the demo shows of a stream: which text was proposed, which the target decided, and what both ways come to."""

import re

import pytest
from rich.console import Console

from paceline.cli import demo, side_by_side
from paceline.cli.demo import report
from paceline.cli.side_by_side import Asked, Run, show, told
from paceline.v1.inference_pb2 import Delta


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal with colours in place of the one that there may be."""
    console = Console(
        force_terminal=True, color_system="standard", highlight=False, soft_wrap=True, markup=False, width=160
    )
    for module in (demo, side_by_side):
        monkeypatch.setattr(module, "out", console)
    return console


def test_accepted_text_and_the_targets_own_have_different_styles(out: Console) -> None:
    with out.capture() as captured:
        show(Delta(text="self.path = ", num_accepted_characters=10))
    shown = captured.get()
    assert re.fullmatch(r"\x1b\[32mself\.path \x1b\[0m\x1b\[1m= \x1b\[0m", shown), repr(shown)


def test_a_delta_of_one_kind_has_one_style_and_an_empty_one_shows_nothing(out: Console) -> None:
    with out.capture() as captured:
        show(Delta(text="own"))
        show(Delta(text="all", num_accepted_characters=3))
        show(Delta())
    assert captured.get() == "\x1b[1mown\x1b[0m\x1b[32mall\x1b[0m"


def test_brackets_of_a_text_are_shown_as_they_are(out: Console) -> None:
    with out.capture() as captured:
        show(Delta(text="[red]x[/red]", num_accepted_characters=5))
    assert "[red]" in captured.get()
    assert "x[/red]" in captured.get()


@pytest.mark.parametrize(("tokens", "code", "said"), [([1, 2], 0, "yes"), ([1, 3], 1, "NO")])
def test_the_report_says_what_the_draft_was_worth_and_whether_words_are_the_same(
    out: Console, tokens: list[int], code: int, said: str
) -> None:
    asked = [
        Asked("first?", Run(tokens, 1 / 30, 6, 3), Run([1, 2], 1 / 10, 0, 0)),
        Asked("second?", Run([1, 2], 1 / 40, 0, 0), Run([1, 2], 1 / 20, 0, 0)),
        Asked("third?", Run([1, 2], 1 / 40, 4, 1), Run([1, 2], 1 / 40, 0, 0)),
    ]
    sources = [Asked("import os", Run([1, 2], 1 / 50, 4, 4), Run([1, 2], 1 / 20, 0, 0))]
    with out.capture() as captured:
        assert report(asked, sources) == code
    shown = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    assert re.search(rf"first\?\s+10\s+30\s+3\.00\s+50%\s+{said}", shown)
    assert re.search(r"second\?\s+20\s+40\s+2\.00\s+-\s+yes", shown)
    assert "the assistant is 2.10 times as fast as without" in shown
    assert "texts come 2.50 times as fast" in shown


def test_the_report_is_of_the_assistant_alone_where_nothing_else_was_asked(out: Console) -> None:
    asked = [Asked("first?", Run([1, 2], 1 / 30, 6, 3), Run([1, 2], 1 / 20, 0, 0))]
    with out.capture() as captured:
        assert report(asked, ()) == 0
    shown = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    assert "the assistant is 1.50 times as fast as without.\n" in shown
    assert "knows its target well" not in shown


def test_a_line_says_what_came_of_a_question() -> None:
    same = Asked("?", Run([1, 2], 1 / 30, 6, 3), Run([1, 2], 1 / 20, 0, 0))
    assert told(same) == "30 tokens/s, without speculation 20: 1.50 times as fast, the same words"
    assert told(same._replace(off=Run([3], 0.0, 0, 0))).endswith("OTHER WORDS")


def test_an_answer_of_one_token_has_no_speed(out: Console) -> None:
    short = Asked("?", Run([1], 0.0, 0, 0), Run([1], 0.0, 0, 0))
    assert told(short) == "0 tokens/s, without speculation 0: 1.00 times as fast, the same words"
    with out.capture():
        assert report([short], ()) == 0
