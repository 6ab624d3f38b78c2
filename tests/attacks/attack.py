"""One attack: what is sent to which process, by whom, and how the caller behaves. It can be written down as a line."""

import base64
import json
import zlib
from enum import StrEnum
from typing import NamedTuple, Self


class Behaviour(StrEnum):
    """What the caller does beside sending messages."""

    ENDS = "ends"
    """Sends all, and reads to the end."""
    HALF_OPEN = "half open"
    """Never says that it has sent all."""
    NEVER_READS = "never reads"
    """Sends all, takes no answer, and goes after a while."""
    CANCELS = "cancels"
    """Cancels a moment after sending."""
    HURRIES = "hurries"
    """Gives a deadline of a few milliseconds."""
    RAW = "raw"
    """Sends its messages over a bare connection, piece by piece: what they are is no concern of gRPC's library."""


class Attack(NamedTuple):
    """What is sent."""

    process: str
    method: str
    """Full name, such as "paceline.v1.InferenceService/Generate"."""
    messages: tuple[bytes, ...]
    behaviour: Behaviour = Behaviour.ENDS
    identity: str = "proper"
    """Who the caller says to be: a name that identities.py knows."""
    seconds: float = 0.0
    """How long it waits where its behaviour has it wait."""
    label: str = ""
    """What is special about it."""

    def __str__(self) -> str:
        size = sum(map(len, self.messages))
        what = f"{len(self.messages)} messages of {size} bytes"
        return f"{self.process} {self.method}: {self.label} ({what}, {self.behaviour}, {self.identity})"

    def line(self) -> str:
        """The attack in one word of text."""
        fields = self._asdict() | {"messages": [base64.b64encode(message).decode() for message in self.messages]}
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(fields).encode(), 9)).decode()

    @classmethod
    def of_line(cls, line: str) -> Self:
        """The attack that a line tells of."""
        fields = json.loads(zlib.decompress(base64.urlsafe_b64decode(line)))
        fields["messages"] = tuple(map(base64.b64decode, fields["messages"]))
        fields["behaviour"] = Behaviour(fields["behaviour"])
        return cls(**fields)
