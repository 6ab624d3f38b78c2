"""How many requests may try again at once: what was lost with one replica must not drown the others.

Envoy bounds retries alike (`retry_budget` of its circuit breakers, with the same figures in deploy/envoy). Nobody is
refused for it: who finds no room waits until somebody else has got on, or was lost.
"""

from typing import Any

from gateway.model.replica_list import ReplicaList

_SHARE = 0.2
"""Of the requests that run."""
_LEAST = 10
"""So many may in any case."""


class RetryBudget:
    """What requests of one service share."""

    def __init__(self, replicas: ReplicaList[Any, Any]) -> None:
        self._replicas = replicas
        self._num_trying = 0

    def take(self) -> bool:
        """Whether one more request may try again now; it says `give_back` when it has got on or was lost."""
        num_running = sum(replica.num_uses for replica in self._replicas)
        if self._num_trying >= max(_LEAST, _SHARE * num_running):
            return False
        self._num_trying += 1
        return True

    def give_back(self) -> None:
        """Makes room for another one, and has those that wait look."""
        self._num_trying -= 1
        self._replicas.note_change()
