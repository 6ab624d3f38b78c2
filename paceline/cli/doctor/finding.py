"""What a check of a system comes to."""

from enum import StrEnum
from typing import NamedTuple


class Mark(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """Nothing is broken, and something could be better or will break."""
    WRONG = "wrong"


class Finding(NamedTuple):
    """One line of what is said about a system."""

    check: str
    """What was looked at, in a word or two."""
    mark: Mark
    says: str
    """What was found, in a sentence."""
    do: str = ""
    """What to do about it; empty where there is nothing to do."""


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, Mark.OK, says)


def warning(check: str, says: str, do: str) -> Finding:
    """Something to know of, and what to do."""
    return Finding(check, Mark.WARNING, says, do)


def wrong(check: str, says: str, do: str) -> Finding:
    """Something to mend, and how."""
    return Finding(check, Mark.WRONG, says, do)
