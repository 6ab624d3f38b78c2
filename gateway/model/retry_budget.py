"""How many requests may try again at once: what was lost with one replica must not drown another.

Envoy bounds retries alike (`retry_budget` of its circuit breakers, with the same figures in deploy/envoy). Nobody is
refused for it: who finds no room waits until somebody else has got on there, or was lost.
"""

from collections import Counter
from typing import Any

from gateway.model.replica import Replica
from gateway.model.replica_list import ReplicaList

_SHARE = 0.2
"""Of the requests that run at a replica."""
_LEAST = 10
"""So many may in any case."""


class RetryBudget:
    """What requests of one service share. Each replica has its own room: one that is slow holds up nobody elsewhere."""

    def __init__(self, replicas: ReplicaList[Any, Any]) -> None:
        self._replicas = replicas
        self._num_trying: Counter[Replica[Any, Any]] = Counter()

    def take(self, replica: Replica[Any, Any]) -> bool:
        """Whether one more request may try again there now; it says `give_back` when it has got on or was lost."""
        if self._num_trying[replica] >= max(_LEAST, _SHARE * replica.num_uses):
            return False
        self._num_trying[replica] += 1
        return True

    def give_back(self, replica: Replica[Any, Any]) -> None:
        """Makes room for another one, and has those that wait look."""
        self._num_trying[replica] -= 1
        self._replicas.note_change()
