"""Gauges that every process with an engine has; read when metrics are collected."""

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.model_server.streams import OpenStreams

_STEP_ROWS = (1, 8, 64)


def observe_engine(instruments: Meter, engine_loop: EngineLoop[Any], open_streams: OpenStreams) -> None:
    """Registers gauges of KV blocks, open sequences, step time and preemptions."""

    def gauge(name: str, unit: str, description: str, read: Callable[[Engine], Iterable[Observation]]) -> None:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            return read(engine_loop.role.engine) if engine_loop.is_ready else ()

        instruments.create_observable_gauge(name, [callback], unit, description)

    gauge(
        "paceline.kv_blocks",
        "{block}",
        "KV blocks by state.",
        lambda engine: (
            Observation(engine.pool.num_used, {"state": "used"}),
            Observation(engine.pool.num_available, {"state": "available"}),
        ),
    )
    gauge("paceline.open_sequences", "{sequence}", "Open streams.", lambda _: (Observation(open_streams.count),))
    gauge(
        "paceline.step_seconds",
        "s",
        "Expected time of a step by its number of rows.",
        lambda engine: [Observation(engine.step_times.seconds(rows), {"rows": rows}) for rows in _STEP_ROWS],
    )
    gauge(
        "paceline.preemptions",
        "{preemption}",
        "Sequences that lost their blocks and were computed anew.",
        lambda engine: (Observation(engine.scheduler.num_preemptions),),
    )
