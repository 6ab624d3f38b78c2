"""How much a tenant may ask for: requests and tokens a minute, and requests that stream at once.

Rates are token buckets that hold a minute's worth. What other gateways let through is taken from the same buckets as
soon as it is heard of: see `gateway.tenants.shared_use`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.tenants.plan import Plan
from paceline.errors import QuotaExceededError

_MINUTE = 60.0
_STREAM_RETRY_SECONDS = 1.0
_MAX_KEPT = 1 << 12


class _Bucket:
    """Fills up within a minute. Its level may be below zero: what was taken without asking."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._capacity: float | None = None
        self._level = math.inf

    def wait(self, capacity: float, count: float) -> float:
        """Seconds until so much can be taken; 0 takes it."""
        now = self._clock()
        if capacity != self._capacity:  # The plan was changed, or is seen for the first time.
            taken = 0.0 if self._capacity is None else self._capacity - self._level
            self._capacity, self._level = capacity, capacity - taken
        self._level = min(capacity, self._level + (now - self._at) * capacity / _MINUTE)
        self._at = now
        if self._level >= count:
            self._level -= count
            return 0.0
        return (count - self._level) * _MINUTE / capacity if capacity else _MINUTE

    def take(self, count: float) -> None:
        """Takes without asking, or gives back what is below zero."""
        self._level -= count


@dataclass(slots=True)
class Use:
    """What one tenant has let through here, and runs."""

    requests: _Bucket
    tokens: _Bucket
    num_requests: int = 0
    num_tokens: int = 0
    num_streams: int = 0
    num_streams_elsewhere: int = 0


class Allowance:
    """One request's share of its tenant's limits."""

    def __init__(self, tenant: str, plan: Plan, use: Use) -> None:
        self._tenant = tenant
        self._plan = plan
        self._use = use
        self._reserved = 0

    def reserve(self, num_prompt_tokens: int, num_tokens: int) -> None:
        """Takes the tokens that a request may use at most. Raises QuotaExceededError.

        A request may ask for more than a minute's worth in all, as long as its prompt is not more.
        """
        limit = self._plan.tokens_per_minute
        if limit is not None:
            if num_prompt_tokens > limit:
                description = f"the prompt has {num_prompt_tokens} tokens, more than the {limit} tokens a minute"
                raise QuotaExceededError(self._tenant, description)
            num_tokens = min(num_tokens, limit)
            if wait := self._use.tokens.wait(limit, num_tokens):
                raise QuotaExceededError(
                    self._tenant, f"the limit of {limit} tokens a minute is used up; this takes {num_tokens}", wait
                )
        self._use.num_tokens += num_tokens
        self._reserved = num_tokens

    def settle(self, num_tokens: int) -> None:
        """Gives back what was not used, or takes what was used beyond."""
        self._use.tokens.take(num_tokens - self._reserved)
        self._use.num_tokens += num_tokens - self._reserved
        self._reserved = num_tokens


class Limits:
    """The limits of all tenants that have some."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.uses: dict[str, Use] = {}
        """By tenant, those that were met."""

    @contextmanager
    def request(self, tenant: str, plan: Plan) -> Iterator[Allowance]:
        """One request, while it runs. Raises QuotaExceededError, which says when it is worth trying again."""
        use = self.use(tenant)
        if plan.max_streams is not None and use.num_streams + use.num_streams_elsewhere >= plan.max_streams:
            description = f"{plan.max_streams} requests at once are the limit"
            raise QuotaExceededError(tenant, description, _STREAM_RETRY_SECONDS)
        if (limit := plan.requests_per_minute) is not None and (wait := use.requests.wait(limit, 1)):
            raise QuotaExceededError(tenant, f"the limit of {limit} requests a minute is used up", wait)
        use.num_requests += 1
        use.num_streams += 1
        try:
            yield Allowance(tenant, plan, use)
        finally:
            use.num_streams -= 1

    def use(self, tenant: str) -> Use:
        """What a tenant uses here."""
        if tenant not in self.uses:
            if len(self.uses) >= _MAX_KEPT:
                self._forget()
            self.uses[tenant] = Use(_Bucket(self._clock), _Bucket(self._clock))
        return self.uses[tenant]

    def _forget(self) -> None:
        """Lets go of those who run nothing, longest known first, half of all at most."""
        idle = [tenant for tenant, use in self.uses.items() if not use.num_streams]
        for tenant in idle[: _MAX_KEPT // 2]:
            del self.uses[tenant]
