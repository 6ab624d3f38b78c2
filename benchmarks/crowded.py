"""How long a health check waits while long prompts are tokenized, all at once."""

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from models.corpus import load_corpus
from paceline.v1 import inference_pb2
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

NUM_PROMPTS, NUM_TIMES = 8, 3
PROMPT_BYTES = 4 << 20
_PAUSE_SECONDS = 0.005
_METHOD = "/paceline.v1.InferenceService/Tokenize"
_ANY_SIZE = (("grpc.max_receive_message_length", -1),)


async def longest_health_wait(model: str) -> float:
    """The longest that a gateway's health check took, asked every 5 ms from a thread of this process.

    It is the median of some times that the prompts are sent.
    """
    written = "\n".join(document.text for document in load_corpus().held_out).encode()
    text = (written * (PROMPT_BYTES // len(written) + 1))[:PROMPT_BYTES].decode(errors="ignore")
    settings = SystemSettings((Pair(model=model),), log_level="WARNING")
    request = inference_pb2.TokenizeRequest(text=text).SerializeToString()
    async with (
        running(settings) as launcher,
        grpc.aio.insecure_channel(launcher.address(), options=_ANY_SIZE) as channel,
    ):
        # Messages are bytes here, so that this process has nothing to do meanwhile that would count as waiting.
        tokenize: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _METHOD, request_serializer=None, response_deserializer=None
        )
        longest: list[float] = []
        for _ in range(NUM_TIMES):  # What the machine does by itself falls on one of them.
            with _asking(launcher.address()) as waits:
                await asyncio.gather(*(tokenize(request) for _ in range(NUM_PROMPTS)))
            longest.append(max(waits))
    return statistics.median(longest)


@contextmanager
def _asking(address: str) -> Iterator[list[float]]:
    waits: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not over.wait(_PAUSE_SECONDS):
                started = time.monotonic()
                stub.Check(health_pb2.HealthCheckRequest())
                waits.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()
