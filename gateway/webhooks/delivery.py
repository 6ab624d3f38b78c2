"""Sends messages to webhooks after the Standard Webhooks specification: signed, at least once, again where they fail.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus

import httpx2
from standardwebhooks import Webhook

from gateway.clock import time_of_day
from gateway.webhooks.addresses import Addresses
from gateway.webhooks.outbox import Message, Outbox
from paceline.errors import PacelineError, UnavailableError

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 15.0
TAKEN_SECONDS = 60.0
"""A message that was taken so long ago is another gateway's to send."""
_MAX_AT_ONCE = 32
_MAX_ADDRESSES = 3
_PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0)
"""Seconds before each further attempt, as the specification proposes."""


class Delivery:
    """One gateway's share of the sending."""

    def __init__(
        self,
        outbox: Outbox,
        addresses: Addresses,
        client: httpx2.AsyncClient,
        pauses: Sequence[float] = _PAUSES,
        clock: Callable[[], float] = time_of_day,
    ) -> None:
        self._outbox = outbox
        self._addresses = addresses
        self._client = client
        self._pauses = pauses
        self._clock = clock
        self._sending: dict[str, asyncio.Task[None]] = {}
        """By webhook."""
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends while the block lasts. What is on its way at its end is sent again by others, or later."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            tasks = [task, *self._sending.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                room = _MAX_AT_ONCE - len(self._sending)
                messages = await self._outbox.claim(room, list(self._sending), self._clock()) if room else []
                for message in messages:
                    self._sending[message.webhook] = asyncio.create_task(self._deliver(message))
            except UnavailableError as error:
                _log.warning("webhooks wait: %s", error)
            except Exception:
                _log.exception("webhooks wait")
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _deliver(self, message: Message) -> None:
        try:
            await self._record(message, *await self._send(message))
        except UnavailableError as error:
            _log.warning("message %s may be sent again: %s", message.id, error)
        except Exception:
            _log.exception("message %s may be sent again", message.id)
        finally:
            del self._sending[message.webhook]
            self._wake.set()

    async def _send(self, message: Message) -> tuple[int, str]:
        """Status of the answer, 0 for none, and what went wrong."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                addresses = await self._addresses.resolve(message.url)
                status = await self._post(message, addresses[:_MAX_ADDRESSES])
        except TimeoutError:
            return 0, f"no answer within {_ANSWER_SECONDS:g} s"
        except (OSError, PacelineError, httpx2.HTTPError) as error:
            return 0, str(error) or type(error).__name__
        return status, "" if 200 <= status < 300 else f"answered with status {status}"

    async def _post(self, message: Message, addresses: Sequence[str]) -> int:
        url, now = httpx2.URL(message.url), datetime.fromtimestamp(self._clock(), UTC)
        signatures = [Webhook(key).sign(message.id, now, message.body) for key in message.keys]
        headers = {
            "host": url.netloc.decode(),
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        for place, address in enumerate(addresses, 1):
            # The certificate is that of the name; what is connected to is the address that was checked.
            request = self._client.build_request(
                "POST",
                url.copy_with(host=address),
                content=message.body.encode(),
                headers=headers,
                extensions={"sni_hostname": url.host},
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx2.ConnectError:
                if place == len(addresses):
                    raise
                continue
            await response.aclose()
            return response.status_code
        raise ValueError("there is no address")

    async def _record(self, message: Message, status: int, problem: str) -> None:
        if not problem:
            await self._outbox.arrived(message)
        elif status == HTTPStatus.GONE:
            _log.warning("webhook %s says that it is gone", message.webhook)
            await self._outbox.gone(message, self._clock())
        else:
            again = message.num_attempts <= len(self._pauses)
            _log.warning("message %s to webhook %s: %s", message.id, message.webhook, problem)
            pause = self._pauses[message.num_attempts - 1] * random.uniform(1.0, 1.2) if again else 0.0
            await self._outbox.failed(message, problem, self._clock() + pause if again else None)


def open_client() -> httpx2.AsyncClient:
    """A client that goes where it is sent, and nowhere else: by no proxy, after no redirection."""
    limits = httpx2.Limits(max_connections=_MAX_AT_ONCE, max_keepalive_connections=0)
    return httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=_ANSWER_SECONDS, limits=limits)
