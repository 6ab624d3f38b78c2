"""`paceline health`: whether a process serves, for whoever starts and stops processes."""

import asyncio
from typing import Annotated, Any

import grpc
import typer

from paceline.channel import open_channel
from paceline.cli.terminal import DEFAULT_ADDRESS, Address, fail, out, tls_of
from paceline.errors import from_call
from paceline.tls import TlsError

_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""HealthCheckResponse of status SERVING. The client has no stubs of its own for this one message."""


def health(
    address: Address = DEFAULT_ADDRESS,
    seconds: Annotated[float, typer.Option(min=0.01, help="Longest wait for an answer.")] = 5.0,
) -> None:
    """Ends with 0 when the process at an address serves, whichever of a system's it is, else with 1."""
    try:
        answer = asyncio.run(_ask(address, seconds))
    except TlsError as error:
        fail(str(error))
    except grpc.aio.AioRpcError as error:
        fail(f"{address} does not answer: {from_call(error)}")
    if answer != _SERVING:
        fail(f"{address} does not serve")
    out.print("serves")


async def _ask(address: str, seconds: float) -> bytes:
    async with open_channel(address.removeprefix("https://"), tls=tls_of(address)) as channel:
        ask: Any = channel.unary_unary(_CHECK)
        answer: bytes = await ask(b"", timeout=seconds)
        return answer
