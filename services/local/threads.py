"""How the cores of one machine are divided between models."""

from typing import NamedTuple


class Threads(NamedTuple):
    """CPU threads of the two models of a pair."""

    verifier: int
    draft: int

    def share(self, num_cores: int) -> bool:
        """Whether the two cannot run at once without getting into each other's way."""
        return self.verifier + self.draft > num_cores


def divide_threads(num_cores: int, *, with_draft: bool) -> Threads:
    """Divides cores between verifier and draft so that they do not fight for them.

    The draft is small: one core is all it needs. On two cores both have all and the two take turns: the draft does not
    draft ahead, so that it is idle while the verifier verifies.
    """
    if not with_draft or num_cores <= 2:
        return Threads(max(1, num_cores), max(1, min(num_cores, 2)))
    return Threads(num_cores - 1, 1)
