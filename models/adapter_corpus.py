"""The corpus in two other hands: what the adapters that ship learn from.

`two_spaces` changes how a file is written and not what it says; `docstrings` keeps of a file what is documented. Both
take the text of a Python file and return another, or None for a file that does not lend itself to it.
"""

import ast
import inspect
import io
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from models.corpus import Document

INDENT = 2
WRITTEN_INDENT = 4  # of lines that are continued; blocks are counted
OPENING = frozenset("([{")
CLOSING = frozenset(")]}")

Transformation = Callable[[str], str | None]
_Documentable = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class _Margin(NamedTuple):
    """Columns before the first character of a line, as they were and as they will be."""

    old: int
    new: int


def transform(documents: Iterable[Document], transformation: Transformation) -> list[Document]:
    """The documents that lend themselves to it, transformed."""
    pairs = ((document.path, transformation(document.text)) for document in documents)
    return [Document(path, text) for path, text in pairs if text is not None]


def two_spaces(text: str) -> str | None:
    """Indented by two columns and quoted with `"` wherever that needs no escape.

    Contents of strings stay as they are; lines of a docstring move with the line it begins on.
    """
    try:
        rewritten = _reindent(_requote(text))
        same = _meaning(rewritten) == _meaning(text)
    except (SyntaxError, tokenize.TokenError):
        return None
    return rewritten if same else None


def docstrings(text: str) -> str | None:
    """Without the functions and classes that have no docstring, at any depth, and what stands before them.

    A compound statement goes whole when there is such a one in it, a documented function or class only in its part.
    """
    try:
        dropped = set(_undocumented(_parse(text)))
    except SyntaxError:
        return None
    kept = "\n".join(line for row, line in enumerate(text.split("\n"), 1) if row not in dropped).lstrip("\n")
    return kept if any(isinstance(node, _Documentable) for node in ast.walk(_parse(kept))) else None


TRANSFORMATIONS: dict[str, Transformation] = {"two-spaces": two_spaces, "docstrings": docstrings}


def _requote(text: str) -> str:
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.STRING:
            continue
        quote = "'''" if token.string.endswith("'''") else "'"
        prefix, _, rest = token.string.partition(quote)
        body = rest.removesuffix(quote)
        if rest.endswith(quote) and '"' not in prefix + body:
            for (row, column), length in ((token.start, len(prefix)), (token.end, -len(quote))):
                begin = column + length
                line = lines[row - 1]
                lines[row - 1] = line[:begin] + '"' * len(quote) + line[begin + len(quote) :]
    return "\n".join(lines)


def _reindent(text: str) -> str:
    lines = text.split("\n")
    margins = _margins(lines, tokenize.generate_tokens(io.StringIO(text).readline))
    for row, (old, new) in margins.items():
        lines[row - 1] = " " * new + lines[row - 1][old:]
    return "\n".join(lines)


def _margins(lines: list[str], tokens: Iterable[tokenize.TokenInfo]) -> dict[int, _Margin]:
    """The margin of every line with code or a comment, and of the later lines of strings; rows count from 1."""
    margins: dict[int, _Margin] = {}
    levels = [0]  # columns of the blocks that are open
    brackets: list[tuple[int, int]] = []  # row and column of those that are open
    statement = 0  # the row that it begins on; 0 between statements
    for token in tokens:
        row, column = token.start
        if token.type == tokenize.INDENT:
            levels.append(len(token.string))
        elif token.type == tokenize.DEDENT:
            levels.pop()
        elif token.type == tokenize.NEWLINE:
            statement = 0
        elif token.type not in {tokenize.NL, tokenize.ENDMARKER}:
            if row not in margins and statement:
                margins[row] = _continued(lines, margins, column, *(brackets[-1] if brackets else (statement, None)))
            elif row not in margins:
                margins[row] = _Margin(column, INDENT * sum(level < column for level in levels))
            if token.type == tokenize.STRING:
                margins.update(_later_lines(lines, token, _Margin(0, 0) if statement else margins[row]))
            if token.type != tokenize.COMMENT:
                statement = statement or row
            if token.string in OPENING:
                brackets.append(token.start)
            elif token.string in CLOSING:
                brackets.pop()
    return margins


def _continued(lines: list[str], margins: dict[int, _Margin], column: int, row: int, bracket: int | None) -> _Margin:
    """Of a line in a statement or a bracket that begins at `row`: aligned with the bracket, or indented from there."""
    begins = margins[row]
    if bracket is not None and lines[row - 1][bracket + 1 :].partition("#")[0].strip():
        return _Margin(column, max(0, column + begins.new - begins.old))
    return _Margin(column, max(0, begins.new + (column - begins.old) * INDENT // WRITTEN_INDENT))


def _later_lines(lines: list[str], string: tokenize.TokenInfo, first: _Margin) -> dict[int, _Margin]:
    """Of all lines of a string but its first, which they follow; no line loses more than blanks."""
    margins = {}
    for row in range(string.start[0] + 1, string.end[0] + 1):
        blanks = len(lines[row - 1]) - len(lines[row - 1].lstrip(" "))
        old = min(blanks, first.old)
        margins[row] = _Margin(old, min(old, first.new)) if lines[row - 1].strip() else _Margin(0, 0)
    return margins


def _undocumented(parent: ast.AST) -> Iterator[int]:
    """The rows of the statements to drop, each with the gap before it."""
    gap = 1
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.stmt):
            continue
        end = node.end_lineno or node.lineno
        if isinstance(node, _Documentable) and ast.get_docstring(node, clean=False):
            yield from _undocumented(node)
        elif any(isinstance(inner, _Documentable) and not ast.get_docstring(inner) for inner in ast.walk(node)):
            yield from range(gap, end + 1)
        gap = end + 1


def _meaning(text: str) -> str:
    """The syntax tree, with strings that stand alone as a reader of documentation sees them."""
    module = _parse(text)
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = inspect.cleandoc(node.value.value).rstrip()
    return ast.dump(module)


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that old files have
        return ast.parse(text)
