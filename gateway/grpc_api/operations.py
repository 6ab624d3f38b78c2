"""OperationsService: how the system fares, for who runs it."""

from gateway.status import SystemStatus
from gateway.tenants.identity import Identity
from paceline.v1 import operations_pb2, operations_pb2_grpc
from services.common.access import CallContext


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """Between gRPC and what is found out of the system."""

    def __init__(self, status: SystemStatus, identity: Identity) -> None:
        self._status = status
        self._identity = identity

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: CallContext
    ) -> operations_pb2.GetStatusResponse:
        """See operations.proto."""
        await self._identity.check_operator(context, is_local=self._status.is_local)
        return await self._status.find()
