"""Attacks by number: the same seed and number make the same attack."""

import random
from collections.abc import Mapping, Sequence

from attacks.attack import Attack, Behaviour
from attacks.extremes import Extreme, extremes
from attacks.identities import PROPER
from attacks.ordinary import ordinary
from attacks.raw import raw_pieces
from attacks.targets import Target
from attacks.wire import BYTES, tag

_UNUSUAL_BEHAVIOUR, _UNUSUAL_IDENTITY, _RAW = 0.15, 0.2, 0.02
_MAX_WAIT_SECONDS = 0.5
_MANY_MESSAGES = 300
_RANDOM_SIZES = 0, 1, 2, 5, 20, 300, 5_000
_HURRIES = Behaviour.CANCELS, Behaviour.HURRIES, Behaviour.HALF_OPEN, Behaviour.NEVER_READS


class Generator:
    """Of even number every field at each of its extremes, in an order that the seed decides; between whatever comes."""

    def __init__(
        self, targets: Sequence[Target], identities: Mapping[str, Sequence[str]], seed: int, huge: float = 1.0
    ) -> None:
        """`identities` are names by process; of what is huge only a share `huge` is sent."""
        self._targets = targets
        self._identities = identities
        self._seed = seed
        self._huge = huge
        rng = random.Random(seed)
        singles = [(target, extreme) for target in targets for extreme in extremes(target.request)]
        self._singles = [single for single in singles if not single[1].is_huge or rng.random() < huge]
        rng.shuffle(self._singles)

    @property
    def num_extremes(self) -> int:
        """How many attacks bring one field to one extreme."""
        return len(self._singles)

    def attack(self, number: int) -> Attack:
        """The attack of a number, from 0."""
        rng = random.Random(f"{self._seed} {number}")
        half, rest = divmod(number, 2)
        if not rest and half < len(self._singles):
            target, extreme = self._singles[half]
            messages, label = _with_extremes(rng, target, [extreme])
            return Attack(target.process, target.method, messages, label=label)
        target = rng.choice(self._targets)
        if rng.random() < _RAW:
            label, pieces = raw_pieces(rng, target.method, rng.choice(ordinary(target.method)))
            return Attack(target.process, target.method, pieces, Behaviour.RAW, PROPER, _wait(rng), label)
        messages, label = self._messages(rng, target)
        behaviour, identity = Behaviour.ENDS, PROPER
        if rng.random() < _UNUSUAL_BEHAVIOUR:
            behaviour = rng.choice(_HURRIES)
        if rng.random() < _UNUSUAL_IDENTITY:
            identity = rng.choice(self._identities[target.process])
        return Attack(target.process, target.method, messages, behaviour, identity, _wait(rng), label)

    def huge(self) -> list[Attack]:
        """All attacks that bring one field to an extreme of megabytes."""
        return [self.attack(2 * at) for at, (_, extreme) in enumerate(self._singles) if extreme.is_huge]

    def _messages(self, rng: random.Random, target: Target) -> tuple[tuple[bytes, ...], str]:
        """What is sent, and how it is called."""
        plain = ordinary(target.method)
        at = rng.randrange(len(plain))
        match rng.choices(("extremes", "random", "cut", "flipped", "reordered", "plain"), (50, 10, 10, 10, 10, 10))[0]:
            case "extremes":
                return _with_extremes(rng, target, self._some(rng, target))
            case "random":
                message, label = rng.randbytes(rng.choice(_RANDOM_SIZES)), "random bytes"
            case "cut":
                message, label = plain[at][: rng.randrange(len(plain[at]) + 1)], "cut off"
            case "flipped":
                message, label = _flipped(rng, plain[at]), "bits flipped"
            case "reordered":
                return _reordered(rng, plain), "other messages"
            case _:
                return plain, "ordinary"
        return (*plain[:at], message, *plain[at + 1 :]), label

    def _some(self, rng: random.Random, target: Target) -> list[Extreme]:
        found: list[Extreme] = []
        everything = extremes(target.request)
        for _ in range(rng.choice((1, 2, 2, 3, 5))):
            extreme = rng.choice(everything)
            if not extreme.is_huge or rng.random() < self._huge * 0.1:
                found.append(extreme)
        return found


def _with_extremes(rng: random.Random, target: Target, found: Sequence[Extreme]) -> tuple[tuple[bytes, ...], str]:
    """An ordinary call with fields brought to extremes, each in a message that has it if there is one."""
    messages = list(ordinary(target.method))
    for extreme in found:
        outermost = tag(extreme.numbers[0], BYTES) if extreme.numbers else None
        fitting = [at for at, message in enumerate(messages) if outermost and message.startswith(outermost)]
        messages[rng.choice(fitting or range(len(messages)))] += extreme.data
    return tuple(messages), ", ".join(map(str, found)) or "ordinary"


def _flipped(rng: random.Random, message: bytes) -> bytes:
    flipped = bytearray(message)
    for _ in range(rng.choice((1, 2, 8)) if message else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _reordered(rng: random.Random, plain: Sequence[bytes]) -> tuple[bytes, ...]:
    """None of the messages, one many times, or some in any order."""
    match rng.randrange(4):
        case 0:
            return ()
        case 1:
            return (*plain, *[rng.choice(plain)] * _MANY_MESSAGES)
        case 2:
            return tuple(reversed(plain))
        case _:
            return tuple(rng.choice((*plain, b"")) for _ in range(rng.randrange(1, 8)))


def _wait(rng: random.Random) -> float:
    return round(rng.random() * _MAX_WAIT_SECONDS, 3)
