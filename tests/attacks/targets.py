"""What can be attacked: every method of every service of every process, as the processes themselves say."""

from collections.abc import Sequence
from typing import NamedTuple

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paceline.internal.v1 import adapter_store_pb2, draft_pb2, model_server_pb2, prefix_cache_pb2, verifier_pb2
from paceline.v1 import adapter_pb2, cache_pb2, inference_pb2, model_pb2

_FILES = (
    *(adapter_pb2, cache_pb2, inference_pb2, model_pb2, health_pb2, reflection_pb2),
    *(adapter_store_pb2, draft_pb2, model_server_pb2, prefix_cache_pb2, verifier_pb2),
)
ENDLESS = frozenset({"grpc.health.v1.Health/Watch"})
"""Methods whose streams end when their clients do."""
_V1 = "grpc.reflection.v1."


class Target(NamedTuple):
    """A method of a process."""

    process: str
    method: str
    """Full name, such as "paceline.v1.InferenceService/Generate"."""
    request: Descriptor
    is_stream: bool
    """Whether the client sends a stream."""


async def targets_of(process: str, address: str) -> list[Target]:
    """The methods that a process says to have, health and reflection among them."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="*")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        names = [service.name async for reply in call for service in reply.list_services_response.service]
    return [target for name in sorted(names) for target in _of_service(process, name)]


def all_services() -> set[str]:
    """Full names of all services that there are protos of."""
    return {service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()}


def _of_service(process: str, name: str) -> Sequence[Target]:
    # Reflection's v1 is v1alpha under another name.
    known = name.replace(_V1, "grpc.reflection.v1alpha.")
    service = descriptor_pool.Default().FindServiceByName(known)
    return [
        Target(process, f"{name}/{method.name}", method.input_type, method.client_streaming)
        for method in service.methods
    ]
