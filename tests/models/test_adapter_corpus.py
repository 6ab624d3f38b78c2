"""The two transformations that the adapters learn from."""

import ast
from pathlib import Path

import pytest

from models.adapter_corpus import docstrings, transform, two_spaces
from models.corpus import Document

FOUR_SPACES = '''\
import os


class Folder:
    """A folder
    and its files.

        indented in the text
    """

    def __init__(self, path='.'):
        # where it is
        self.path = path
        self.names = {
            'a': [1,
                  2],  # aligned
            'b': """kept
        as it is""",
        }

    def size(self, follow=False,
             hidden=True):
        if follow and \\
                hidden:
            return self.call('it\\'s',
                             key='say "so"')
        # the rest
        return 0
'''

TWO_SPACES = '''\
import os


class Folder:
  """A folder
  and its files.

      indented in the text
  """

  def __init__(self, path="."):
    # where it is
    self.path = path
    self.names = {
      "a": [1,
            2],  # aligned
      "b": """kept
        as it is""",
    }

  def size(self, follow=False,
           hidden=True):
    if follow and \\
        hidden:
      return self.call("it\\'s",
                       key='say "so"')
    # the rest
    return 0
'''

MIXED = '''\
"""A module."""

import os

# about f
def f():
    return 1


class Kept:
    """A class."""

    # about nothing
    @property
    def bare(self):
        return 2

    # about method

    def method(self):
        """A method."""
        # about inner
        def inner():
            return 3
        return inner  # as it is


if os.name == 'nt':
    def g():
        return 4

class Bare:
    def h(self):
        """Not kept: its class says nothing."""


async def last():
    """The last one."""
'''

DOCUMENTED = '''\
"""A module."""

import os


class Kept:
    """A class."""

    # about method

    def method(self):
        """A method."""
        return inner  # as it is


async def last():
    """The last one."""
'''


def test_indentation_is_halved_and_quotes_become_double() -> None:
    assert two_spaces(FOUR_SPACES) == TWO_SPACES


def test_two_spaces_leaves_its_own_output_alone_where_nothing_is_continued() -> None:
    text = 'def f(x):\n  """Say\n  it.\n  """\n  return "x"\n'
    assert two_spaces(text) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = '''a\nb'''\n", 'x = """a\nb"""\n'),
        ("x = rb'\\d'\n", 'x = rb"\\d"\n'),
        ("x = 'a' 'b', ''\n", 'x = "a" "b", ""\n'),
        ("x = '\"'\n", "x = '\"'\n"),
        ('x = "it\'s"\n', 'x = "it\'s"\n'),
    ],
)
def test_quotes(before: str, after: str) -> None:
    assert two_spaces(before) == after


@pytest.mark.parametrize("text", ["print 'old'\n", "x = (\n", "if x:\n        y\n    z\n"])
def test_what_is_no_python_is_skipped(text: str) -> None:
    assert two_spaces(text) is None
    assert docstrings(text) is None


def test_only_what_is_documented_stays() -> None:
    assert docstrings(MIXED) == DOCUMENTED


def test_a_file_in_which_nothing_is_documented_is_skipped() -> None:
    assert docstrings("x = 1\n\n\ndef f():\n    return x\n") is None


def test_transform_keeps_paths_and_drops_what_is_skipped() -> None:
    documents = [Document("a.py", "if x:\n    y = 'z'\n"), Document("b.py", "print 'old'\n")]
    assert transform(documents, two_spaces) == [Document("a.py", 'if x:\n  y = "z"\n')]


def test_real_files_keep_their_meaning(repository: Path) -> None:
    for path in sorted((repository / "models").glob("*.py")):
        if not (text := path.read_text()):
            continue
        shorter = two_spaces(text)
        assert shorter is not None, path
        assert ast.dump(ast.parse(shorter)).count("Call(") == ast.dump(ast.parse(text)).count("Call(")
        kept = docstrings(text)
        for node in ast.walk(ast.parse(kept or "")):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert ast.get_docstring(node), path
