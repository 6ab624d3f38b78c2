"""Regular expressions of strangers, tried in a process of their own.

A short expression can take hours, or all memory that there is. The standard library's module, which PEFT uses too,
bounds neither; others bound the time alone. The kernel bounds both. Run as a program (with nothing but the standard
library at hand) this file reads one question from its standard input and writes the answer.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

MAX_PATTERN_CHARACTERS = 1000
_CPU_SECONDS = 2
_WALL_SECONDS = 20.0
_MEMORY_BYTES = 512 << 20


class PatternError(ValueError):
    """An expression that is none, or that takes too much."""


def first_matches(patterns: Sequence[str], names: Sequence[str], *, whole: bool) -> list[str | None]:
    """For each name, None when no pattern matches it, else the text of the first one's group "idx", or "".

    `whole` has patterns match names from end to end, otherwise from the start. Raises PatternError.
    """
    if sum(map(len, patterns)) > MAX_PATTERN_CHARACTERS:
        raise PatternError(f"has more than {MAX_PATTERN_CHARACTERS} characters")
    question = json.dumps({"patterns": patterns, "names": names, "whole": whole})
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-S", __file__],
            input=question, capture_output=True, text=True, check=False, timeout=_WALL_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PatternError("takes too long") from error
    if done.returncode:
        raise PatternError("takes too long or too much memory")
    answer: Any = json.loads(done.stdout)
    if isinstance(answer, str):
        raise PatternError(f"is no regular expression: {answer}")
    found: list[str | None] = answer
    return found


def _answer(question: Any) -> list[str | None] | str:
    """The matches, or what is wrong with a pattern."""
    try:
        patterns = [re.compile(pattern) for pattern in question["patterns"]]
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return [_first_match(patterns, name, whole=question["whole"]) for name in question["names"]]


def _first_match(patterns: "list[re.Pattern[str]]", name: str, *, whole: bool) -> str | None:
    for pattern in patterns:
        match = pattern.fullmatch(name) if whole else pattern.match(name)
        if match:
            return match.groupdict().get("idx") or ""
    return None


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
