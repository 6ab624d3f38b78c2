"""Limits: what is over them is refused with whose they are and when to come back, over all gateways."""

from contextlib import ExitStack

import pytest

from gateway.database.database import Database
from gateway.tenants.limits import Limits
from gateway.tenants.plan import Plan
from gateway.tenants.shared_use import SharedUse
from paceline.errors import QuotaExceededError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(limits: Limits, plan: Plan, prompt: int = 1, most: int = 1, used: int | None = None) -> None:
    """A request that has ended."""
    with limits.request("a", plan) as allowance:
        allowance.reserve(prompt, most)
        allowance.settle(most if used is None else used)


def test_requests_a_minute_come_back_one_by_one() -> None:
    clock = Clock()
    limits, plan = Limits(clock), Plan(requests_per_minute=3)
    for _ in range(3):
        ask(limits, plan)
    with pytest.raises(QuotaExceededError, match="3 requests a minute") as caught:
        ask(limits, plan)
    assert caught.value.subject == "a"
    assert caught.value.retry_after_seconds == pytest.approx(20)
    clock.now += 20
    ask(limits, plan)
    with pytest.raises(QuotaExceededError):
        ask(limits, plan)
    with limits.request("b", plan):
        pass


def test_tokens_are_reserved_and_given_back() -> None:
    clock = Clock()
    limits, plan = Limits(clock), Plan(tokens_per_minute=100)
    ask(limits, plan, 10, 90, used=20)
    ask(limits, plan, 10, 80)
    with pytest.raises(QuotaExceededError, match="100 tokens a minute is used up; this takes 60") as caught:
        ask(limits, plan, 10, 60)
    assert caught.value.retry_after_seconds == pytest.approx(36)
    clock.now += 36
    ask(limits, plan, 10, 60)


def test_more_than_a_minute_holds_may_be_asked_for_but_not_as_a_prompt() -> None:
    limits, plan = Limits(Clock()), Plan(tokens_per_minute=100)
    ask(limits, plan, 10, 5000, used=30)
    with pytest.raises(QuotaExceededError, match="101 tokens, more than the 100") as caught:
        ask(limits, plan, 101, 102)
    assert caught.value.retry_after_seconds is None


def test_streams_at_once_are_counted_until_they_end() -> None:
    limits, plan = Limits(Clock()), Plan(max_streams=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(limits.request("a", plan))
        with pytest.raises(QuotaExceededError, match="2 requests at once"):
            ask(limits, plan)
    ask(limits, plan)


def test_a_limit_of_zero_lets_nothing_through() -> None:
    with pytest.raises(QuotaExceededError):
        ask(Limits(Clock()), Plan(requests_per_minute=0))
    with pytest.raises(QuotaExceededError):
        ask(Limits(Clock()), Plan(tokens_per_minute=0))


def test_a_changed_plan_counts_at_once() -> None:
    limits = Limits(Clock())
    ask(limits, Plan(tokens_per_minute=100), 10, 80)
    ask(limits, Plan(tokens_per_minute=200), 10, 110)
    with pytest.raises(QuotaExceededError):
        ask(limits, Plan(tokens_per_minute=100), 1, 1)


async def test_a_limit_is_one_over_all_gateways(database: Database) -> None:
    plan = Plan(requests_per_minute=10, tokens_per_minute=1000, max_streams=2)
    clock = Clock()
    mine, theirs = Limits(clock), Limits(clock)
    sharing = [SharedUse(database, limits) for limits in (mine, theirs)]

    async def exchange() -> None:
        for _ in range(2):
            for shared in sharing:
                await shared.exchange()

    ask(mine, plan)
    ask(theirs, plan)
    await exchange()
    with mine.request("a", plan) as running:
        running.reserve(1, 700)
        for _ in range(6):
            ask(mine, plan)
        await exchange()
        with pytest.raises(QuotaExceededError, match="1000 tokens a minute"):
            ask(theirs, plan, 1, 400)
        with theirs.request("a", plan):
            await exchange()
            with pytest.raises(QuotaExceededError, match="2 requests at once"):
                ask(mine, plan)
    await exchange()
    with pytest.raises(QuotaExceededError, match="10 requests a minute"):
        ask(theirs, plan)
    await sharing[0].forget()
