"""gRPC server reflection in both of its versions, v1 and v1alpha, which differ in nothing but their package's name.

gRPC's Python package has v1alpha alone; tools ask for v1 first (https://github.com/grpc/grpc-proto).
"""

from collections.abc import Iterable
from functools import cache

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_OLD = "grpc.reflection.v1alpha"
_NEW = "grpc.reflection.v1"


def add_reflection(service_names: Iterable[str], server: grpc.aio.Server) -> None:
    """Has a server describe these services, and reflection itself."""
    names = (*service_names, f"{_NEW}.ServerReflection", f"{_OLD}.ServerReflection")
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler(f"{_NEW}.ServerReflection", {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((service,))


@cache
def _describe_v1() -> None:
    """Makes the descriptors of v1 from those of v1alpha."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _NEW
    for field in (field for message in file.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(_OLD, _NEW)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_OLD, _NEW)
        method.output_type = method.output_type.replace(_OLD, _NEW)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
