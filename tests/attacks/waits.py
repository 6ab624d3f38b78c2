"""How long others wait beside one request: each of those that are large, alone."""

import asyncio
from typing import NamedTuple

from attacks.asking import PAUSE_SECONDS, asked
from attacks.attack import Attack
from attacks.fire import Attacker
from attacks.siege import Siege

_TIMES = 3


class Wait(NamedTuple):
    """The longest that a question waited while a request was served, as the median of some times that it was sent."""

    seconds: float
    question: str
    attack: Attack
    outcome: str


async def longest_waits(siege: Siege, attacks: list[Attack]) -> list[Wait]:
    """The longest wait beside each of some attacks, longest first. Nobody else asks anything meanwhile.

    All are sent some times, in turns: what the machine does by itself falls on another each time.
    """
    attacker = Attacker(siege.addresses)
    found: list[list[Wait]] = [[] for _ in attacks]
    async with asked(siege.addresses) as longest:
        for attack, waits in _TIMES * list(zip(attacks, found, strict=True)):
            metadata = siege.identities.metadata(attack.process, attack.identity)
            await longest()
            outcome = await attacker.send(attack, metadata)
            await asyncio.sleep(4 * PAUSE_SECONDS)
            waits.append(Wait(*await longest(), attack, outcome))
    await attacker.close()
    medians = [sorted(waits, key=lambda wait: wait.seconds)[_TIMES // 2] for waits in found]
    return sorted(medians, key=lambda wait: -wait.seconds)
