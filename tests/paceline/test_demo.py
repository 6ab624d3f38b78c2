"""What the demo shows of a stream: which text was proposed, which the target decided, and what both ways come to."""

import re

import pytest
from rich.console import Console

from paceline.cli import demo
from paceline.cli.demo import Run, report, show
from paceline.v1.inference_pb2 import Delta


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal with colours in place of the one that there may be."""
    console = Console(force_terminal=True, color_system="standard", highlight=False, soft_wrap=True, markup=False)
    monkeypatch.setattr(demo, "out", console)
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
def test_the_report_says_the_median_of_ratios_and_whether_outputs_are_the_same(
    out: Console, tokens: list[int], code: int, said: str
) -> None:
    off = [Run([1, 2], 10.0, 0, 0), Run([1, 2], 20.0, 0, 0), Run([1, 2], 40.0, 0, 0)]
    on = [Run([1, 2], 30.0, 6, 3), Run(tokens, 40.0, 4, 2), Run([1, 2], 40.0, 0, 0)]
    with out.capture() as captured:
        assert report({True: on, False: off}) == code
    shown = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    assert re.search(r"on / off\s+2\.00", shown)
    assert re.search(r"accepted of proposed\s+50%", shown)
    assert re.search(rf"identical\s+{said}", shown)
