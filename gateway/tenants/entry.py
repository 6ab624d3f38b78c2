"""What one request used, as the ledger keeps it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gateway.tenants.kind import Kind
from paceline.v1 import inference_pb2

DAY_SECONDS = 86400.0


class Resumed(NamedTuple):
    """That a request was begun at another gateway."""

    received: inference_pb2.Usage
    """What its client had received before."""
    price: Callable[[inference_pb2.Usage], int]
    """What some usage of it costs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request used."""

    request_id: str
    tenant: str
    key_id: str
    model: str
    adapter: str
    kind: Kind
    outcome: str
    ended_at: float
    """Seconds since 1970."""
    usage: inference_pb2.Usage
    cost: int
    """Billionths of the currency."""
    resumed: Resumed | None = None
    """None where it began here."""
    prompt_digest: str = ""
    """By what its prompt is known, should another gateway go on with it."""

    def row(self) -> dict[str, Any]:
        """As the tables have it."""
        return {
            "request_id": self.request_id,
            "tenant": self.tenant,
            "day": day_of(self.ended_at),
            "key_id": self.key_id,
            "model": self.model,
            "adapter": self.adapter,
            "kind": self.kind.value,
            "outcome": self.outcome,
            "ended_at": self.ended_at,
            "num_requests": 1,
            "num_prompt_tokens": self.usage.num_prompt_tokens,
            "num_cached_tokens": self.usage.num_cached_tokens,
            "num_completion_tokens": self.usage.num_completion_tokens,
            "num_drafted_tokens": self.usage.num_drafted_tokens,
            "num_accepted_tokens": self.usage.num_accepted_tokens,
            "cost": self.cost,
            "prompt_digest": self.prompt_digest,
        }


def day_of(moment: float) -> str:
    """The day (UTC) of a moment, such as "2026-11-26"."""
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
