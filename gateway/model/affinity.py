"""Where a sequence is at home: consistent hashing with bounded loads, the same rule as the mesh's Envoys have.

Sequences that begin alike go to one replica, which has computed that beginning. No replica gets more than its share:
what is over it goes to the next in an order that is another for each beginning (Mirrokni, Thorup, Zadimoghaddam 2016,
arXiv 1608.01350). The order is that of rendezvous hashing (Thaler, Ravishankar 1998), so that a replica which comes or
goes moves nothing but what is its own.
"""

from typing import NamedTuple

from xxhash import xxh3_64_intdigest


class Affinity(NamedTuple):
    """What a use has to do with earlier ones."""

    prefix: str = ""
    """The same for sequences that begin alike; empty: nothing to find again."""
    adapter: str = ""
    """Digest of the adapter that is needed; empty: the base model."""

    def route(self, num_lost: int) -> str:
        """What a proxy in between chooses a replica by. Where replicas were lost it leads elsewhere: the proxy may not
        know yet.
        """
        return f"{self.prefix}-{num_lost}" if self.prefix and num_lost else self.prefix


NONE = Affinity()


def weight(target: str, key: str) -> int:
    """How much a key belongs to the replica at a target: of all replicas the one with the most is its home."""
    return xxh3_64_intdigest(f"{target}\0{key}".encode())


def most_uses(num_uses: int, num_replicas: int) -> int:
    """Uses from which on a replica gets no more while others have less: 1.25 times the average, counting the next one.

    Envoy computes the same from a `hash_balance_factor` of 125. There is always a replica below it.
    """
    return -(-5 * (num_uses + 1) // (4 * num_replicas))
