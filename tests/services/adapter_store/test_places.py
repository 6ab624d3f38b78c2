"""Places for uploads go to tenants in turn, and none is lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ResourceExhaustedError
from services.adapter_store.places import UploadPlaces


class Upload:
    """An upload that holds its place until it is told to end."""

    def __init__(self, places: UploadPlaces, namespace: str) -> None:
        self.namespace = namespace
        self.has_place = False
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._run(places))

    async def _run(self, places: UploadPlaces) -> None:
        async with places.place(self.namespace):
            self.has_place = True
            await self._over.wait()
            self.has_place = False

    async def end(self) -> None:
        self._over.set()
        await self.task


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_gets_places_by_tenant_not_by_time() -> None:
    places = UploadPlaces(2, 2, 60)
    flood = [Upload(places, "a") for _ in range(8)]
    await settled()
    late = [Upload(places, name) for name in ("b", "b", "c")]
    await settled()
    granted: list[Upload] = []
    uploads = flood + late
    while len(granted) < len(uploads):
        granted += [upload for upload in uploads if upload.has_place and upload not in granted]
        await next(upload for upload in granted if upload.has_place).end()
        await settled()
    assert [upload.namespace for upload in granted] == list("aabacb") + ["a"] * 5


async def test_nobody_waits_for_ever_nor_in_any_number() -> None:
    places = UploadPlaces(1, 1, 0.05)
    first = Upload(places, "a")
    await settled()
    waiting = [Upload(places, "a") for _ in range(8)]
    await settled()
    with pytest.raises(ResourceExhaustedError):
        async with places.place("a"):
            pass
    for upload in waiting:
        with pytest.raises(ResourceExhaustedError):
            await upload.task
    await first.end()
    async with places.place("a"):
        pass


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "cancel"]), st.integers(0, 2)), max_size=40))
def test_no_place_is_lost_and_none_is_given_twice(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        places = UploadPlaces(3, 2, 60)
        uploads: list[Upload] = []
        for step, number in steps:
            if step == "begin":
                uploads.append(Upload(places, "abc"[number]))
            elif uploads:
                upload = uploads.pop(number % len(uploads))
                if step == "end" and upload.has_place:
                    await upload.end()
                else:
                    upload.task.cancel()
            held = Counter(upload.namespace for upload in uploads if upload.has_place)
            assert sum(held.values()) <= 3
            assert max(held.values(), default=0) <= 2
        for upload in uploads:
            upload.task.cancel()
        await settled()
        await asyncio.gather(*(asyncio.wait_for(places.place(name).__aenter__(), 1) for name in "aab"))

    asyncio.run(run())
