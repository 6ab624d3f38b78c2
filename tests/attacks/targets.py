"""What can be attacked: every method of every service of every process, as the processes themselves say."""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import paceline.internal.v1
import paceline.v1

_PACKAGES = paceline.v1, paceline.internal.v1
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
    return {name for file in _files() for name in (service.full_name for service in file.services_by_name.values())}


@cache
def _files() -> Sequence[FileDescriptor]:
    """All files of the protos, and those of health and reflection."""
    names = [
        f"{package.__name__}.{module.name}"
        for package in _PACKAGES
        for module in pkgutil.iter_modules(package.__path__)
        if module.name.endswith("_pb2")
    ]
    ours = [importlib.import_module(name).DESCRIPTOR for name in names]
    return [*ours, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]


def _of_service(process: str, name: str) -> Sequence[Target]:
    _files()
    # Reflection's v1 is v1alpha under another name.
    known = name.replace(_V1, "grpc.reflection.v1alpha.")
    service = descriptor_pool.Default().FindServiceByName(known)
    return [
        Target(process, f"{name}/{method.name}", method.input_type, method.client_streaming)
        for method in service.methods
    ]
