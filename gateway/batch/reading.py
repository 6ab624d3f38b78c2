"""The lines of a batch as they come: checked in a thread, some at once, and counted.

What is kept of an upload at any moment is a few thousand lines and sixteen bytes a line.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from gateway.batch.lines import KnownModel, Line, read_line
from gateway.batch.states import ItemState
from gateway.tenants.kind import Kind
from gateway.tenants.prices import Prices
from paceline.errors import FieldViolation, InvalidArgumentError
from paceline.v1 import batch_pb2, inference_pb2

_MAX_ITEMS = 1_000_000
_MAX_FAULTS = 20
"""Lines whose faults are told; details travel in one header of a few kilobytes."""
_CHUNK_LINES = 1000
_CHUNK_BYTES = 4 << 20


@dataclass
class Totals:
    """What was read of a batch so far."""

    num_items: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int = 0
    cost: int = 0
    faults: list[FieldViolation] = field(default_factory=list)
    num_faults: int = 0
    seen: set[bytes] = field(default_factory=set)
    """Digests of the custom ids."""
    adapters: dict[tuple[str, str], int] = field(default_factory=dict)
    """Numbers of the lines that name an adapter of a model first."""

    def fault(self, number: int, violations: "tuple[FieldViolation, ...]") -> None:
        self.num_faults += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.extend(FieldViolation(f"line {number}: {name}", problem) for name, problem in violations)


class Reader:
    """Reads one batch."""

    def __init__(self, models: Mapping[str, KnownModel], prices: Prices, max_line_bytes: int) -> None:
        self._models = models
        self._prices = prices
        self._max_line_bytes = max_line_bytes
        self._digest = blake2b(digest_size=32)
        self.totals = Totals()

    @property
    def digest(self) -> bytes:
        """Digest of all bytes that were read."""
        return self._digest.digest()

    async def rows(self, data: AsyncIterator[bytes], batch_id: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Rows of the items, some at once; what is wrong with the other lines is kept among the totals.

        Raises InvalidArgumentError for more lines than a batch may have.
        """
        number = 0
        async for lines in _chunks(data, self._max_line_bytes, self._digest.update):
            rows = await asyncio.to_thread(self._check, lines, number, batch_id)
            number += len(lines)
            if number > _MAX_ITEMS:
                raise InvalidArgumentError("data", f"a batch has at most {_MAX_ITEMS} lines")
            yield rows

    def estimate(self) -> batch_pb2.BatchEstimate:
        """What it will take at most."""
        return batch_pb2.BatchEstimate(
            num_items=self.totals.num_items,
            num_prompt_tokens=self.totals.num_prompt_tokens,
            num_completion_tokens=self.totals.max_tokens,
            cost_nanos=self.totals.cost,
            currency=self._prices.currency,
        )

    def _check(self, lines: "list[bytes | None]", number: int, batch_id: str) -> list[dict[str, Any]]:
        """Rows of the lines that are in order. It runs in a thread; nobody else has the totals meanwhile."""
        rows, totals = [], self.totals
        for place, data in enumerate(lines, number):
            if data is not None and not data.strip():
                continue
            try:
                if data is None:
                    raise InvalidArgumentError("line", f"has more than {self._max_line_bytes} bytes")
                line = read_line(data, self._models)
                digest = blake2b(line.custom_id.encode(), digest_size=16).digest()
                if digest in totals.seen:
                    raise InvalidArgumentError("custom_id", f"{line.custom_id!r} was given before")
            except InvalidArgumentError as error:
                totals.fault(place + 1, error.violations)
                continue
            totals.seen.add(digest)
            cost = self._add(line, place)
            rows.append(
                {
                    "batch": batch_id, "place": place, "custom_id": line.custom_id, "is_chat": line.is_chat,
                    "request": line.request, "affinity": line.affinity, "state": ItemState.WAITING.value,
                    "num_attempts": 0, "not_before": 0.0, "max_cost": cost,
                }
            )  # fmt: skip
        return rows

    def _add(self, line: Line, place: int) -> int:
        """Adds a line up; returns what it costs at most."""
        totals = self.totals
        totals.num_items += 1
        totals.num_prompt_tokens += line.num_prompt_tokens
        totals.max_tokens += line.max_tokens
        usage = inference_pb2.Usage(num_prompt_tokens=line.num_prompt_tokens, num_completion_tokens=line.max_tokens)
        cost = self._prices.cost(line.model, line.adapter, Kind.BATCH, usage)
        totals.cost += cost
        if line.adapter:
            totals.adapters.setdefault((line.model, line.adapter), place + 1)
        return cost


async def _chunks(
    data: AsyncIterator[bytes], most: int, take: Callable[[bytes], object]
) -> "AsyncIterator[list[bytes | None]]":
    """Lines, some at once; None in the place of one that is too long."""
    lines: list[bytes | None] = []
    rest, size, is_too_long = bytearray(), 0, False
    async for piece in data:
        take(piece)
        *ends, start = piece.split(b"\n")
        for end in ends:
            rest += end
            lines.append(None if is_too_long or len(rest) > most else bytes(rest))
            size += len(lines[-1] or b"")
            rest, is_too_long = bytearray(), False
        rest += start
        if len(rest) > most:
            rest, is_too_long = bytearray(), True
        if len(lines) >= _CHUNK_LINES or size >= _CHUNK_BYTES:
            yield lines
            lines, size = [], 0
    if rest.strip() or is_too_long:
        lines.append(None if is_too_long else bytes(rest))
    if lines:
        yield lines
