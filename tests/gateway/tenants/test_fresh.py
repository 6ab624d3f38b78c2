"""What is known of the database is used while it is away or hangs, and no longer than was said."""

import asyncio

import pytest

from gateway.tenants.fresh import Fresh
from paceline.errors import UnavailableError

SECONDS, OUTAGE_SECONDS = 2.0, 60.0


class Source:
    """Answers with a number that rises, hangs, or is away."""

    def __init__(self) -> None:
        self.now = 100.0
        self.num_asked = 0
        self.hangs = self.is_away = False

    def clock(self) -> float:
        return self.now

    async def read(self, key: str) -> int:
        self.num_asked += 1
        if self.is_away:
            raise UnavailableError("the database cannot be used for now")
        if self.hangs:
            await asyncio.Event().wait()
        return self.num_asked


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr("gateway.tenants.fresh._PATIENCE_SECONDS", 0.02)
    return Source()


@pytest.mark.parametrize("how", ["hangs", "is_away"])
async def test_what_is_known_is_used_while_the_database_does_not_answer(source: Source, how: str) -> None:
    fresh = Fresh(source.read, SECONDS, OUTAGE_SECONDS, source.clock)
    assert await fresh.get("a") == await fresh.get("a") == 1
    setattr(source, how, True)
    source.now += SECONDS
    for _ in range(3):
        assert await fresh.get("a") == 1
    assert source.num_asked == 2  # Not every request waits for who does not answer.
    source.now += SECONDS
    setattr(source, how, False)
    assert await fresh.get("a") == 3


async def test_what_is_known_is_used_no_longer_than_was_said(source: Source) -> None:
    fresh = Fresh(source.read, SECONDS, OUTAGE_SECONDS, source.clock)
    await fresh.get("a")
    source.is_away = True
    for _ in range(40):
        source.now += SECONDS
        if source.now >= 100.0 + SECONDS + OUTAGE_SECONDS:
            break
        assert await fresh.get("a") == 1
    with pytest.raises(UnavailableError):
        await fresh.get("a")


async def test_what_was_changed_is_read_anew(source: Source) -> None:
    fresh = Fresh(source.read, SECONDS, OUTAGE_SECONDS, source.clock)
    await fresh.get("a")
    fresh.expire("a")
    assert await fresh.get("a") == 2
    fresh.expire("a")
    source.hangs = True
    assert await fresh.get("a") == 2


@pytest.mark.parametrize("how", ["keep", "expire"])
async def test_who_waited_in_vain_does_not_undo_what_was_heard_meanwhile(source: Source, how: str) -> None:
    fresh = Fresh(source.read, SECONDS, OUTAGE_SECONDS, source.clock)
    await fresh.get("a")
    source.now += SECONDS
    source.hangs = True
    waiting = asyncio.create_task(fresh.get("a"))
    while source.num_asked < 2:
        await asyncio.sleep(0)
    if how == "keep":
        fresh.keep("a", 7)
        assert await waiting == await fresh.get("a") == 7
    else:
        fresh.expire("a")
        assert await waiting == 1
        source.hangs = False
        assert await fresh.get("a") == 3
