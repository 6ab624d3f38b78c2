"""UsageService: what was used, and what it cost."""

from datetime import UTC, datetime

from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.tenants.api_key import Scope
from gateway.tenants.identity import Identity
from gateway.tenants.usage import read_usage
from paceline.v1 import usage_pb2, usage_pb2_grpc
from services.common.access import CallContext


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Between gRPC and the ledger."""

    def __init__(self, database: Database, identity: Identity, currency: str) -> None:
        self._database = database
        self._identity = identity
        self._currency = currency

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: CallContext) -> usage_pb2.GetUsageResponse:
        """See usage.proto."""
        caller = await self._identity.caller(context, Scope.USAGE)
        if request.tenant not in ("", caller.tenant):
            caller.check(Scope.ADMIN)
        tenant = request.tenant or caller.tenant
        today = datetime.fromtimestamp(time_of_day(), UTC).date()
        return await read_usage(self._database, tenant, request, today, self._currency)
