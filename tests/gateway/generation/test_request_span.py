"""The span of a request is current while it runs, and whoever ends the request may be another than began it."""

import asyncio

import pytest
from opentelemetry import trace

from gateway.generation.outcome import Record
from gateway.generation.request_span import request_span
from gateway.tenants.identity import Caller


def record() -> Record:
    return Record("1", Caller("a"), None, "text_completion")


async def test_it_is_current_and_then_what_was_before_is() -> None:
    before = trace.get_current_span()
    with request_span(record()) as span:
        assert trace.get_current_span() is span
    assert trace.get_current_span() is before


async def test_another_task_may_end_it(caplog: pytest.LogCaptureFixture) -> None:
    block = request_span(record())
    block.__enter__()

    async def end() -> None:
        block.__exit__(None, None, None)

    await asyncio.create_task(end())
    assert not caplog.records
