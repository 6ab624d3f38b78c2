"""grpc.health.v1 (https://github.com/grpc/grpc/blob/master/doc/health-checking.md), with what gRPC's own leaves out."""

from grpc_health.v1 import health, health_pb2

from paceline.errors import NotFoundError
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
