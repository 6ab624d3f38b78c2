"""grpc.health.v1 (https://github.com/grpc/grpc/blob/master/doc/health-checking.md), with what gRPC's own leaves out."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from paceline.errors import NotFoundError, UnavailableError
from services.common.access import CallContext


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    """Says how each service fares: `Check` of an unknown one names it, `List` tells of all."""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """See health.proto."""
        if request.service not in self._server_status:
            known = ", ".join(sorted(name for name in self._server_status if name))
            raise NotFoundError("service", request.service, f"this server has {known or 'none'}")
        return health_pb2.HealthCheckResponse(status=self._server_status[request.service])

    async def List(self, request: health_pb2.HealthListRequest, context: CallContext) -> health_pb2.HealthListResponse:
        """See health.proto."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


async def check_serving(channel: grpc.aio.Channel, timeout: float) -> bool:
    """Returns True when the server says that it serves. Raises UnavailableError when not, or grpc.aio.AioRpcError."""
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError("it does not serve yet")
    return True
