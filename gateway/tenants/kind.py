"""What a request is part of."""

from enum import StrEnum


class Kind(StrEnum):
    """Whether somebody waits for it."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
