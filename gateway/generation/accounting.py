"""What the core asks of whoever counts: whether a request may run, and to take note of how it ended."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.generation.outcome import Record
from gateway.tenants.identity import Caller
from gateway.tenants.limits import Allowance


class Accounting(Protocol):
    """Requests of one kind. The core tells each request's end once, however it ends."""

    def request(self, caller: Caller) -> AbstractAsyncContextManager[Allowance]:
        """Lets a request run, or raises; ends the block with an error when its caller may no longer have it."""

    def request_id(self) -> str:
        """An id for the next request."""

    def ended(self, record: Record) -> None:
        """Takes how a request ended, and what it used."""

    async def settled(self) -> None:
        """Returns once the ends told so far are kept for good, or after a moment."""
