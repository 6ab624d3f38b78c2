"""Every public method takes one scope, as the descriptors list them; what is open to everybody is listed here."""

import importlib
import pkgutil
from collections.abc import Iterator

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

import paceline.v1
from gateway.tenants.api_key import Scope
from support.databases import new_sqlite_url
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.system import StartGateway

SCOPES = {
    "InferenceService": Scope.INFERENCE,
    "BatchService": Scope.BATCH,
    "WebhookService": Scope.BATCH,
    "AdapterService": Scope.ADAPTERS,
    "CacheService": Scope.CACHE,
    "UsageService": Scope.USAGE,
    "AdminService": Scope.ADMIN,
    "OperationsService": Scope.ADMIN,
}
OPEN = {"ModelService"}
"""What is served here is no secret."""


def methods() -> Iterator[MethodDescriptor]:
    for module in pkgutil.iter_modules(paceline.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"paceline.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from service.methods


async def code_of(channel: grpc.aio.Channel, method: MethodDescriptor, key: str) -> grpc.StatusCode:
    """How a method answers an empty message."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    request, response = GetMessageClass(method.input_type)(), GetMessageClass(method.output_type)
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(name, type(request).SerializeToString, response.FromString)
    metadata = [("authorization", f"Bearer {key}")] if key else []
    running = call(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=30)
    try:
        if method.server_streaming:
            async for _ in running:
                pass
        else:
            await running
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_method_takes_its_scope_and_no_other(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    keys = {scope: await make_key(url, scope.value, frozenset({scope})) for scope in Scope}
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:
        async with grpc.aio.insecure_channel(system.gateway) as channel:
            for method in methods():
                service = method.containing_service.name
                without = await code_of(channel, method, "")
                allowed = {scope for scope, key in keys.items() if await code_of(channel, method, key) not in refused}
                if service in OPEN:
                    assert without not in refused, method.full_name
                    assert allowed == set(Scope), method.full_name
                else:
                    assert without is grpc.StatusCode.UNAUTHENTICATED, method.full_name
                    assert allowed == {SCOPES[service]}, method.full_name
