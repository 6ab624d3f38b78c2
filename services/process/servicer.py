"""ProcessService over gRPC: the same at every process but the gateway."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import grpc

from paceline.internal.v1 import process_pb2, process_pb2_grpc
from services.common.incarnation import INCARNATION
from services.common.tls_settings import ChannelTls, ServerTls
from services.process.client import SERVICE
from services.process.facts import PACKAGE_VERSION, certificates, disks


class ProcessServicer(process_pb2_grpc.ProcessServiceServicer):
    """Says how this process fares."""

    def __init__(self, folders: Mapping[str, Path], tls: ServerTls | None, channel_tls: ChannelTls | None) -> None:
        """`folders` are those in which it keeps something, by what that is."""
        self._folders = folders
        self._tls = tls
        self._channel_tls = channel_tls

    async def GetProcess(
        self, request: process_pb2.GetProcessRequest, context: object
    ) -> process_pb2.GetProcessResponse:
        """See process.proto."""
        found = await asyncio.to_thread(disks, self._folders)
        shown = await asyncio.to_thread(certificates, self._tls, self._channel_tls)
        return process_pb2.GetProcessResponse(
            version=PACKAGE_VERSION,
            clock_seconds=time.time(),
            disks=found,
            certificates=shown,
            incarnation=INCARNATION,
        )


def add_process_service(
    server: grpc.aio.Server,
    folders: Mapping[str, Path] | None = None,
    tls: ServerTls | None = None,
    channel_tls: ChannelTls | None = None,
) -> str:
    """Has a server say how its process fares; returns the service's name."""
    servicer = ProcessServicer(folders or {}, tls, channel_tls)
    process_pb2_grpc.add_ProcessServiceServicer_to_server(servicer, server)
    return SERVICE
