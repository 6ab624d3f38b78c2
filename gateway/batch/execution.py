"""One item run to an end of its own: a result, an error, or later again."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from gateway.batch.leases import MAX_PAUSE_SECONDS, Ended, Item, Later
from gateway.batch.pins import Pins
from gateway.batch.states import STOPPED, ItemState
from gateway.generation.generation import Generation
from gateway.generation.outcome import Record
from gateway.generation.validation import Request
from gateway.openai.bodies import CHAT_COMPLETIONS, COMPLETIONS
from gateway.openai.replies import Reply
from gateway.tenants.accounts import Accounts
from gateway.tenants.identity import Caller
from gateway.tenants.kind import Kind
from gateway.tenants.limits import Allowance, Limits
from gateway.tenants.plan import NO_LIMITS, Plan
from paceline.errors import PacelineError, from_call
from paceline.v1 import inference_pb2
from services.common.background import BACKGROUND_PRIORITY

_log = logging.getLogger(__name__)
_BATCH_PLAN = Plan(max_priority=BACKGROUND_PRIORITY)
_WAITS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
"""What passes: an item waits for as long as its batch may take."""
_FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_MAX_ATTEMPTS = 3
"""Attempts of an item that something went wrong with, which may be its own doing."""


class _ItemAccounts:
    """Has the core count one item, and keeps what it says."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self.record: Record | None = None

    @property
    def num_crashes(self) -> int:
        """Verifiers that it may have crashed, whenever it was run."""
        has_begun = self.record is not None and self.record.transcripts
        return self.record.num_crashes if self.record is not None and has_begun else self._item.num_crashes

    def request_id(self) -> str:
        return self._item.request_id

    @asynccontextmanager
    async def request(self, caller: Caller) -> AsyncIterator[Allowance]:
        """What a batch may have was decided when it was accepted."""
        with Limits().request(caller.tenant, NO_LIMITS) as allowance:
            yield allowance

    def ended(self, record: Record) -> None:
        self.record = record

    async def settled(self) -> None:
        """The ledger gets it with the result."""


class Execution:
    """Runs items through the core."""

    def __init__(
        self,
        generation: Generation,
        pins: Pins,
        accounts: Accounts,
        clock: Callable[[], float],
    ) -> None:
        self._generation = generation
        self._pins = pins
        self._accounts = accounts
        self._clock = clock

    async def run(self, item: Item, stopped_as: Callable[[], ItemState | None]) -> Ended | Later:
        """Runs an item. When the task is cancelled, and `stopped_as` says how the item ends then, it ends so with what
        was produced; else CancelledError is raised.
        """
        caller = Caller(item.tenant, item.key_id, plan=_BATCH_PLAN)
        url = CHAT_COMPLETIONS if item.is_chat else COMPLETIONS
        reply, counted, request = Reply(url), _ItemAccounts(item), _request(item)
        try:
            await self._pins.check(item.pins, caller, request)
            async with self._generation.run(request, caller, accounts=counted, num_crashes=item.num_crashes) as events:
                async for event in events:
                    reply.add(event)
        except asyncio.CancelledError:
            state = stopped_as()
            if state is None:
                raise
            return self._without_result(item, counted, reply, state, *STOPPED[state])
        except (PacelineError, grpc.aio.AioRpcError) as raised:
            error = raised if isinstance(raised, PacelineError) else from_call(raised)
            return self._refused(item, counted, reply, error)
        except Exception:
            _log.exception("item %s failed", item.request_id)
            return self._fault(item, counted, reply, "internal", "internal error; the server's log says more")
        body = self._body(item, reply, counted)
        response = {"status_code": 200, "request_id": item.request_id, "body": body}
        return self._ended(item, counted, ItemState.COMPLETED, {"response": response})

    def _refused(self, item: Item, counted: _ItemAccounts, reply: Reply, error: PacelineError) -> Ended | Later:
        if error.code in _WAITS and not error.subject:
            pause = max(2.0 ** min(item.num_attempts, 6), error.retry_after_seconds or 0)
            return Later(min(pause, MAX_PAUSE_SECONDS), counted.num_crashes)
        if error.code in _FAULTS:
            return self._fault(item, counted, reply, error.code.name.lower(), str(error))
        code = error.reason.lower() or error.code.name.lower()
        return self._without_result(item, counted, reply, ItemState.FAILED, code, str(error))

    def _fault(self, item: Item, counted: _ItemAccounts, reply: Reply, code: str, message: str) -> Ended | Later:
        if item.num_attempts < _MAX_ATTEMPTS:
            return Later(2.0**item.num_attempts, counted.num_crashes, is_fault=True)
        return self._without_result(item, counted, reply, ItemState.FAILED, code, message)

    def _without_result(
        self, item: Item, counted: _ItemAccounts, reply: Reply, state: ItemState, code: str, message: str
    ) -> Ended:
        """An error, beside what was produced until then, which is billed."""
        told: dict[str, Any] = {"error": {"code": code, "message": message}}
        partial = self._body(item, reply, counted)
        if partial["usage"]["completion_tokens"]:
            told["partial"] = partial
        return self._ended(item, counted, state, told)

    def _ended(self, item: Item, counted: _ItemAccounts, state: ItemState, told: dict[str, Any]) -> Ended:
        record = counted.record
        entry = None
        if record is not None and record.was_admitted:
            entry = replace(self._accounts.entry(record, Kind.BATCH), request_id=item.request_id)
        return Ended(item, state, json.dumps(told), entry)

    def _body(self, item: Item, reply: Reply, counted: _ItemAccounts) -> dict[str, Any]:
        record = counted.record
        usage = record.billed() if record is not None else inference_pb2.Usage()
        return reply.body(item.request_id, record.model if record is not None else "", self._clock(), usage)


def _request(item: Item) -> Request:
    request: Request = inference_pb2.ChatRequest() if item.is_chat else inference_pb2.GenerateRequest()
    request.ParseFromString(item.request)
    return request
