"""Sends an attack, and says how its call ended."""

import asyncio
import contextlib
from typing import Any

import grpc

from attacks.attack import Attack, Behaviour
from attacks.identities import Metadata
from attacks.targets import ENDLESS

HANG_SECONDS = 90.0
"""A call that has sent all it has, and reads, must have ended by then."""
_LIVE_SECONDS = 0.3
_PIECE_SECONDS = 0.002
_MESSAGE_BYTES = 1 << 30
_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
)
_HOLDS = frozenset({Behaviour.HALF_OPEN, Behaviour.NEVER_READS})
Outcome = str
"""Name of the status, or what the attacker did to end the call."""
GONE = "gone"
"""The attacker left."""
_NOT_TOLD = "Stream removed (received metadata"
"""What a client is told in the place of a status that is longer than it takes."""
_TOO_SLOW = ("nothing came", "fewer than")
_REFUSALS = frozenset(
    {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED"),
        *("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
    }
)


def is_fault(attack: Attack, outcome: Outcome) -> bool:
    """Whether no call may end so."""
    if attack.behaviour is Behaviour.RAW or outcome == GONE:
        return False
    code, _, said = outcome.partition(": ")
    # Whoever gave a short deadline, never said that all was sent, or was too slow in sending may be told so.
    late = attack.behaviour in (Behaviour.HURRIES, Behaviour.HALF_OPEN) or said.startswith(_TOO_SLOW)
    if said.startswith(_NOT_TOLD):
        return True
    return code not in _REFUSALS and not (late and code == "DEADLINE_EXCEEDED")


class Attacker:
    """Connections to the processes."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=_OPTIONS) for name, address in addresses.items()
        }

    async def send(self, attack: Attack, metadata: Metadata) -> Outcome:
        """Sends an attack and waits for its end."""
        if attack.behaviour is Behaviour.RAW:
            return await self._send_raw(attack)
        # As a stream both ways whatever the method is: so it can be sent no message, or many.
        call: Any = self._channels[attack.process].stream_stream(f"/{attack.method}")(
            timeout=attack.seconds / 10 if attack.behaviour is Behaviour.HURRIES else HANG_SECONDS,
            metadata=metadata,
        )
        try:
            return await self._converse(call, attack)
        finally:
            call.cancel()

    async def close(self) -> None:
        """Ends the connections."""
        for channel in self._channels.values():
            await channel.close()

    async def _converse(self, call: Any, attack: Attack) -> Outcome:
        behaviour = attack.behaviour
        sending = asyncio.create_task(_write(call, attack))
        try:
            if behaviour in (Behaviour.CANCELS, Behaviour.NEVER_READS):
                await asyncio.wait([sending], timeout=attack.seconds)
                if behaviour is Behaviour.NEVER_READS:
                    await asyncio.sleep(attack.seconds)
                return GONE
            seconds = None
            if behaviour is Behaviour.HALF_OPEN:
                seconds = _LIVE_SECONDS + attack.seconds
            elif attack.method in ENDLESS:
                seconds = _LIVE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await _read(call)
            return GONE
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def _send_raw(self, attack: Attack) -> Outcome:
        host, _, port = self._addresses[attack.process].rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            return f"UNAVAILABLE: {error}"
        try:
            for piece in attack.messages:
                writer.write(piece)
                await writer.drain()
                if len(piece) == 1:
                    await asyncio.sleep(_PIECE_SECONDS)
            await asyncio.sleep(attack.seconds)
            reader.feed_eof()
        except ConnectionError:
            pass  # The other end has had enough.
        finally:
            writer.transport.abort()
        return GONE


async def _write(call: Any, attack: Attack) -> None:
    """Sends all messages; a call that has ended takes no more."""
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError):
        await call.wait_for_connection()
        for message in attack.messages:
            # `call.write` puts INTERNAL in the place of a status that has come already (grpc/grpc#36066).
            await call._cython_call.send_serialized_message(message)
        if attack.behaviour is not Behaviour.HALF_OPEN:
            await call.done_writing()


async def _read(call: Any) -> Outcome:
    """Reads all answers; how the call ended, with what was said about it."""
    with contextlib.suppress(grpc.RpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    code = await call.code()
    return "OK" if code is grpc.StatusCode.OK else f"{code.name}: {(await call.details() or '')[:300]}"
