"""A stream of a verifier, without its engine."""

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.trace import Span, TracerProvider

from services.model_server.streams import EventStream, OpenStreams
from services.verifier.accept import Finish
from services.verifier.servicer import VerifierServicer
from services.verifier.target_sequence import Committed, Origin


def _committed(number: int, finish: Finish | None) -> Committed:
    return Committed(number, 0, [1, 2], 1, 1, finish, [], 0, 1, Origin.DRAFT, was_ready=True, waited_seconds=0.0)


async def _requests() -> Any:
    await asyncio.Event().wait()
    yield


async def test_a_call_that_is_cancelled_for_it_has_ended_has_all_of_its_rounds_in_its_span() -> None:
    engine_loop: Any = SimpleNamespace(
        submit=lambda *_: None, hurry=lambda: None, stopped=asyncio.get_running_loop().create_future()
    )
    target: Any = SimpleNamespace(sequence=SimpleNamespace(is_background=False, num_prompt_tokens=7, num_cached=5))
    servicer = VerifierServicer(engine_loop, opener=SimpleNamespace(open_streams=OpenStreams(1)))  # type: ignore[arg-type]
    stream = EventStream[Committed]()
    for number in range(30):
        stream.emit(_committed(number, Finish.LENGTH if number == 29 else None))
    with TracerProvider().get_tracer("test").start_as_current_span("one", end_on_exit=False) as span:
        async with aclosing(servicer._run(_requests(), stream, target)) as commits:
            async for committed in commits:
                if committed.finish is not None:
                    break
            span.end()  # As when gRPC is told that the call is cancelled while it sends the last message.
    assert isinstance(span, Span)
    rounds = [dict(event.attributes or {}) for event in span.events if event.name == "rounds"]
    for name, of_all in (("rounds", 30), ("committed_tokens", 60)):
        assert sum(int(str(each[f"paceline.{name}"])) for each in rounds) == of_all
    said = dict(span.attributes or {})
    assert [said[f"paceline.{name}"] for name in ("rounds", "prompt_tokens", "cached_tokens")] == [30, 7, 5]
